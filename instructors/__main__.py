"""Train, convert or inspect instructors; `accelerate launch -m instructors train …` trains."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from instil.base.config import load_recipe
from instil.base.config.options import add_recipe_arguments, asked_recipe
from instil.base.config.recipes import layers
from instil.base.errors import InstilError, command
from instil.base.files import check_output
from instil.base.runs.monitor import note
from instructors.training import RECIPES

STUDENT = 2.5  # the level at which inspect rehearses the export of a student


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m instructors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train an instructor on images",
        description="Train an instructor on a folder, .zip, .npz or embedded set of images.",
    )
    add_recipe_arguments(train, RECIPES, "data=photos/")
    moved = commands.add_parser("transfer", help="adapt an instructor to few images, by one arm")
    moved.add_argument("--source", required=True, help="a folder, an embedded name or a hub id")
    moved.add_argument("--data", required=True, metavar="SOURCE", help="images of one's own")
    moved.add_argument(
        "--arm",
        required=True,
        help="scratch, frozen, finetune, finetune-l2 or lora; eval transfer tells",
    )
    moved.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    moved.add_argument("overrides", nargs="*", metavar="key=value", help="such as steps=300")
    inspect = commands.add_parser("inspect", help="say what a model is; executes nothing of it")
    inspect.add_argument("source", help="a folder, an embedded name or a hub id")
    inspect.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    convert = commands.add_parser("convert", help="make safetensors of an EDM pickle; runs nothing")
    convert.add_argument("file", type=Path, help="such as edm-cifar10-32x32-uncond-vp.pkl")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    convert.add_argument("--vae", metavar="DIR", help="the autoencoder of a model of latents")
    convert.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    arguments = parser.parse_args(argv)
    if arguments.command in ("inspect", "convert"):
        check_output("--json", arguments.json)
    if arguments.command == "inspect":
        return _inspect(arguments.source, arguments.json)
    if arguments.command == "convert":
        return _convert(arguments.file, arguments.out, arguments.vae, arguments.json)
    words = argv if argv is not None else sys.argv[1:]
    command_line = f"python -m instructors {shlex.join(words)}"
    if arguments.command == "transfer":
        return _transfer(arguments, command_line)
    from instructors.training.run import run_training  # torch takes seconds to import
    from instructors.training.train import TrainRecipe

    recipe = asked_recipe(arguments, TrainRecipe, partial(layers, folder=RECIPES))
    if recipe is None:
        return 0
    folder = run_training(recipe, arguments.resume, command_line)
    note(f"instructor: {folder}")
    return 0


def _transfer(arguments: argparse.Namespace, command_line: str) -> int:
    from instil.base import data
    from instil.base.runs.accelerator import accelerator_for
    from instructors.load import load
    from instructors.transfer import ARMS
    from instructors.transfer.adapt import Target, adapt, save
    from instructors.transfer.arms import Transfer

    recipe = load_recipe(Transfer, None, arguments.overrides, RECIPES)
    if arguments.arm not in ARMS:
        raise InstilError(f"--arm {arguments.arm}: expected one of {', '.join(ARMS)}")
    if arguments.out.exists():
        raise InstilError(f"--out {arguments.out}: exists; name a new folder")
    images, source = data.load(arguments.data), load(arguments.source)
    accelerator = accelerator_for(recipe.precision, (), ".")
    target = Target.of(source, images, accelerator.device)
    adapted, updates = adapt(source.denoiser, target, arguments.arm, recipe, accelerator)
    save(adapted, source, target, arguments.arm, updates, arguments.out, command_line)
    note(f"{arguments.out}: {arguments.source} adapted by {arguments.arm}, {updates} updates")
    return 0


def _inspect(source: str, json: Path | None) -> int:
    from instil.base.runs.report import show, write_json
    from instructors.inspect import describe, rows
    from instructors.layout import rehearse
    from instructors.load import load

    instructor = load(source, weights=False)
    facts = describe(instructor)
    show(source, rows(facts))
    if json:
        write_json(json, facts)
    rehearse(instructor.denoiser, instructor.denoiser.nearest(STUDENT), instructor.card.folder)
    return 0


def _convert(file: Path, out: Path, vae: str | None, json: Path | None) -> int:
    from instil.base.runs.report import show, write_json
    from instructors.nvidia.convert import convert

    facts = convert(file, out, vae)
    rows = [{"what": key, "value": str(value)} for key, value in facts.items()]
    show(f"{file} -> {out}", rows)
    if facts["licence"] == "unknown":
        note(f"licence: unknown; if you know it, write `license: …` into {out / 'README.md'}")
    else:
        note(f"licence: {facts['licence']}, which students made from {out} inherit")
    if json:
        write_json(json, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
