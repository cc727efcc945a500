"""How well images fit their prompts."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer, device
from instil.base.errors import InstilError


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "clip", help="how well images fit their prompts", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--images", required=True, metavar="SOURCE", help="as for fid")
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="a line per image, in order"
    )
    parser.add_argument("--model", required=True, help="a CLIP model: a folder or hub id")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.quality.clip import Clip
    from instil.base import data
    from instructors.conditions.prompts import read_prompts

    images, prompts = data.load(arguments.images), read_prompts(arguments.prompts)
    if len(images) != len(prompts):
        raise InstilError(
            f"--prompts {arguments.prompts}: expected a line per image, got {len(prompts)} lines "
            f"for {len(images)} images"
        )
    scores = Clip(arguments.model, device())(images.pixels, prompts)
    facts = {"clip": scores.mean().item(), "n": len(scores), "model": arguments.model}
    facts["protocol"] = f"CLIP score of {arguments.model}, {len(scores)} images"
    return [{"figure": "CLIP score", "mean": f"{facts['clip']:.3f}"}], facts
