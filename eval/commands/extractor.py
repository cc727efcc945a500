"""Trains an offline feature extractor."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer
from instil.base.files import check_output


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "extractor",
        help="train an offline feature extractor",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help="images with classes")
    parser.add_argument("--held-out", required=True, metavar="SOURCE", help="for the accuracy")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the facts there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.quality import features
    from instil.base import data

    check_output("--out", arguments.out, ".safetensors")
    images, held_out = data.load(arguments.data), data.load(arguments.held_out)
    facts = features.train(images, held_out, arguments.out, arguments.seed)
    return [{"fact": key, "value": str(value)} for key, value in facts.items()], facts
