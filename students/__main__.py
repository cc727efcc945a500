"""Train, inspect, convert and sample generators."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from instil.base.config import read_overrides, validate
from instil.base.config.options import add_recipe_arguments, asked_recipe
from instil.base.config.recipes import layers
from instil.base.errors import InstilError, command, first_of
from instil.base.files import check_output
from instil.base.runs.monitor import note
from instil.base.runs.report import show, write_json
from students.source import Source

RECIPES = Path(__file__).parent / "recipes"
BATCH = 250  # images drawn at once
MOST = 1_000_000  # in one list of numbers


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m students", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser(
        "train",
        help="train a small GAN: something to refine",
        description="Train a small GAN on a folder, .zip, .npz or embedded set of images.",
        allow_abbrev=False,
    )
    add_recipe_arguments(train, RECIPES, "data=photos/")
    train.set_defaults(run=_train, json=None)

    inspect = commands.add_parser(
        "inspect", help="which tensors of a file fit a generator", allow_abbrev=False
    )
    _source_arguments(inspect)
    inspect.set_defaults(run=_inspect)

    convert = commands.add_parser(
        "convert", help="a StyleGAN2(-ADA) pickle to a folder", allow_abbrev=False
    )
    _source_arguments(convert)
    convert.add_argument("--out", type=Path, metavar="FOLDER", help="default: FILE without .pkl")
    convert.set_defaults(run=_convert)

    sample = commands.add_parser("sample", help="draw a grid of images", allow_abbrev=False)
    _source_arguments(sample)
    sample.add_argument("--seeds", default="0-63", help="such as 0-63 or 3,5,7 [%(default)s]")
    sample.add_argument("--labels", help="one per seed; default: the seed modulo the classes")
    sample.add_argument("--grid", type=Path, metavar="FILE.png", help="all of them as one picture")
    sample.add_argument(
        "--images", type=Path, metavar="FILE.npz", help="as `python -m eval fid --images` reads"
    )
    sample.set_defaults(run=_sample)

    arguments = parser.parse_args(argv)
    arguments.typed = argv if argv is not None else sys.argv[1:]
    check_output("--json", arguments.json)
    facts = arguments.run(arguments)
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="PATH", help="a file, a folder, or an embedded name")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help=f"how it is made and called: {', '.join(list(Source.model_fields)[1:])}",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the facts there")


def _source(arguments: argparse.Namespace) -> Source:
    given = read_overrides(arguments.settings)
    return validate(Source, {"weights": arguments.weights} | given)


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    from students.gan.run import run_training  # torch takes seconds to import
    from students.gan.train import TrainRecipe

    recipe = asked_recipe(arguments, TrainRecipe, partial(layers, folder=RECIPES))
    if recipe is None:
        return {}
    told = f"python -m students {shlex.join(arguments.typed)}"
    folder = run_training(recipe, arguments.resume, told)
    note(f"student: {folder}")
    return {"student": str(folder)}


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from students.load import inspect

    facts = inspect(_source(arguments))
    rows = [{"fact": key, "value": _short(value)} for key, value in facts.items()]
    show(arguments.weights, rows)
    return facts


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    from students.gan.run import save
    from students.gan.stylegan2 import StyleGAN2
    from students.load import load

    source = _source(arguments)
    if Path(source.weights).suffix != ".pkl":
        raise InstilError(f"{source.weights}: expected the .pkl of a StyleGAN2(-ADA) training")
    folder = arguments.out or Path(source.weights).with_suffix("")
    if folder.exists():
        raise InstilError(f"{folder}: exists already; give another --out")
    student = load(source)
    if not isinstance(student, StyleGAN2):
        raise InstilError(f"{source.weights}: is made by a factory, so there is nothing to convert")
    told = f"python -m students {shlex.join(arguments.typed)}"
    save(student, folder, CONVERTED.format(name=folder.name, command=told))
    note(f"student: {folder}")
    return {"student": str(folder)}


CONVERTED = """---
library_name: instil
tags: [gan, instil-student]
---

# {name}

A StyleGAN2-ADA generator converted by `{command}`. Its licence is the original's.
"""


def _sample(arguments: argparse.Namespace) -> dict[str, Any]:
    if not arguments.grid and not arguments.images:
        raise InstilError("sample: nothing to write; give --grid FILE.png or --images FILE.npz")
    check_output("--grid", arguments.grid, ".png")
    check_output("--images", arguments.images, ".npz")
    seeds = _numbers("--seeds", arguments.seeds)
    labels = None if arguments.labels is None else _numbers("--labels", arguments.labels)
    if labels is not None and len(labels) != len(seeds):
        raise InstilError(f"--labels: {len(labels)} of them for {len(seeds)} seeds; give as many")
    import numpy as np
    import torch

    from instil.base.data import to_uint8
    from instil.base.runs.pictures import save_picture, sheet
    from students.compatibility import check_range
    from students.gan.generator import GAN
    from students.load import load

    student = load(_source(arguments))
    if len(student.shape) != 3 or student.shape[0] not in (1, 3):
        raise InstilError(
            f"{arguments.weights}: makes {student.shape}, which is no picture; say the shape of "
            "one image, such as shape=[1,28,28]"
        )
    if isinstance(student, GAN):
        check_range(student.sample(range(64)), arguments.weights)
    images = torch.cat(
        [
            to_uint8(student.sample(seeds[k : k + BATCH], labels and labels[k : k + BATCH]))
            for k in range(0, len(seeds), BATCH)
        ]
    )
    if arguments.grid:
        columns, zoom = round(len(seeds) ** 0.5), max(1, 32 // student.shape[-1])
        save_picture([sheet(images, columns)], arguments.grid, zoom)
        note(f"{len(images)} images: {arguments.grid}")
    if arguments.images:
        given: list[int] = labels or [seed % max(1, student.classes) for seed in seeds]
        arrays: dict[str, Any] = {"images": images.permute(0, 2, 3, 1).numpy()}
        if student.classes:
            arrays["labels"] = np.array(given)
        np.savez(arguments.images, **arrays)
        note(f"{len(images)} images: {arguments.images}")
    return {"images": len(images), "shape": student.shape}


def _numbers(name: str, text: str) -> list[int]:
    """`0-3,7` as [0, 1, 2, 3, 7]."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part, re.ASCII)
        if ends is None:
            raise InstilError(f"{name}: {text!r} is not of the form 0-63 or 3,5,7")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not 0 <= last - first < MOST - len(numbers):
            raise InstilError(f"{name}: {part} must rise, over at most {MOST:,} numbers in all")
        numbers += range(first, last + 1)
    return numbers


def _short(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    return f"{len(value)}: {first_of([*map(str, value)], 8)}" if value else "none"


if __name__ == "__main__":
    sys.exit(main())
