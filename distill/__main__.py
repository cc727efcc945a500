"""Distil a pretrained diffusion model into a one-step generator, without data."""

import argparse
import os
import sys
from pathlib import Path

from distill.preflight import check, with_preflight
from distill.recipe import RECIPES, Recipe
from instil.base.config.options import (
    add_recipe_arguments,
    asked_recipe,
)
from instil.base.config.recipes import Layer, layers
from instil.base.errors import InstilError, command
from instil.base.files import check_output
from instil.base.untrusted import is_file

DEFAULT = "digits"


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m distill",
        description=f"{__doc__} The default recipe is {DEFAULT}.",
    )
    add_recipe_arguments(parser, RECIPES, "train.steps=20")
    parser.add_argument("--check", action="store_true", help="only check the recipe, in a second")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    parser.add_argument("--processes", type=int, metavar="N", help="of --dry-run, one per device")
    parser.add_argument(
        "--speed", type=float, metavar="IMAGES/S", help="of a process: --dry-run says the hours"
    )
    parser.add_argument("--images", type=float, metavar="N", help="that the hours are for")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    arguments = parser.parse_intermixed_args(argv)
    check_output("--json", arguments.json)
    recipe = asked_recipe(
        arguments, Recipe, lambda source, changes: _layers(source, changes, arguments.resume)
    )
    if recipe is None:
        return 0
    if arguments.check:
        print(f"{recipe.name}: the recipe is sound")
        return 0
    if arguments.resume is None:
        check(recipe)
    from distill.distillation import Distillation  # torch and diffusers take seconds to import
    from instil.base.runs.report import write_json

    if arguments.dry_run:
        return _dry_run(recipe, arguments)
    report = Distillation(recipe, arguments.resume).finish()
    if arguments.json and os.environ.get("RANK", "0") == "0":
        write_json(arguments.json, report)
    return 0


def _layers(source: str | None, changes: list[str], resume: str | None) -> list[Layer]:
    """The recipe's files, what its preflight settles, and the command line."""
    if resume and source is None:
        places = (Path(resume), *Path(resume).parents[1:2])  # a run, or a checkpoint in one
        files = [place / "recipe.yaml" for place in places if is_file(place / "recipe.yaml")]
        if not files:
            raise InstilError(f"--resume {resume}: no run there, and no checkpoint of a run")
        source = str(files[0])
    given = layers(source or DEFAULT, changes, RECIPES)
    return with_preflight(given) if resume is None else given


def _dry_run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from distill.cost.plan import plan, rows
    from instil.base.runs.accelerator import accelerator_for
    from instil.base.runs.report import show, write_json

    for option in ("processes", "speed", "images"):
        value = getattr(arguments, option)
        if value is not None and not value > 0:
            raise InstilError(f"--{option} {value:g}: expected more than 0")
    accelerator = accelerator_for(recipe.train.precision, (), recipe.output)
    facts = plan(
        recipe.replace(train=recipe.train.replace(precision=accelerator.mixed_precision)),
        arguments.processes or accelerator.num_processes,
        arguments.speed,
        arguments.images,
    )
    show(f"{recipe.name}: nothing was run", rows(facts))
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
