"""Train, convert or inspect instructors; `accelerate launch -m instructors train …` trains."""

import argparse
import shlex
import sys
from pathlib import Path

from instil.config import load_recipe
from instil.errors import command
from instil.report import note

RECIPES = Path(__file__).parent / "recipes"


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m instructors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train an instructor on images")
    train.add_argument("recipe", nargs="?", help="a named recipe, a YAML file, or key=value")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as data=photos/")
    train.add_argument(
        "--resume", nargs="?", const="", metavar="DIR", help="continue the newest run, or this one"
    )
    inspect = commands.add_parser("inspect", help="say what a model is; executes nothing of it")
    inspect.add_argument("source", help="a folder, an embedded name or a hub id")
    inspect.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    convert = commands.add_parser("convert", help="make safetensors of an EDM pickle; runs nothing")
    convert.add_argument("file", type=Path, help="such as edm-cifar10-32x32-uncond-vp.pkl")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    convert.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    arguments = parser.parse_args(argv)
    if arguments.command == "inspect":
        return _inspect(arguments.source, arguments.json)
    if arguments.command == "convert":
        return _convert(arguments.file, arguments.out, arguments.json)
    source, overrides = arguments.recipe, arguments.overrides
    if source and "=" in source:
        source, overrides = None, [source, *overrides]
    from instructors.session import session  # torch takes seconds to import
    from instructors.train import TrainRecipe

    recipe = load_recipe(TrainRecipe, source, overrides, RECIPES)
    words = argv if argv is not None else sys.argv[1:]
    folder = session(recipe, arguments.resume, f"python -m instructors {shlex.join(words)}")
    note(f"instructor: {folder}")
    return 0


def _inspect(source: str, json: Path | None) -> int:
    from instil.report import show, write_json
    from instructors.inspect import describe, rows
    from instructors.load import load

    facts = describe(load(source))
    show(source, rows(facts))
    if json:
        write_json(json, facts)
    return 0


def _convert(file: Path, out: Path, json: Path | None) -> int:
    from instil.report import show, write_json
    from instructors.convert import convert

    facts = convert(file, out)
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
