"""Distil a pretrained diffusion model into a one-step generator, without data."""

import argparse
import os
import sys
from pathlib import Path

from distill.preflight import check, overrides_from, read
from distill.recipe import RECIPES, Recipe
from instil.base.config import load_recipe, recipe_names
from instil.base.errors import InstilError, command
from instil.base.files import check_output
from instil.base.untrusted import is_file


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m distill",
        description=__doc__,
        epilog=f"recipes: {recipe_names(RECIPES)}",
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="RECIPE key=value",
        help="a named recipe or a YAML file (default: digits), then changes such as train.steps=20",
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="DIR", help="continue the newest run, or this one"
    )
    parser.add_argument("--check", action="store_true", help="only check the recipe, in a second")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    parser.add_argument("--processes", type=int, metavar="N", help="of --dry-run, one per device")
    parser.add_argument(
        "--speed", type=float, metavar="IMAGES/S", help="of a process: --dry-run says the hours"
    )
    parser.add_argument("--images", type=float, metavar="N", help="that the hours are for")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    arguments = parser.parse_intermixed_args(argv)
    if "=" in (arguments.resume or ""):  # `--resume train.steps=9`: a change, not a folder
        arguments.arguments.append(arguments.resume)
        arguments.resume = ""
    check_output("--json", arguments.json)
    recipe = _recipe(arguments.arguments, arguments.resume)
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


def _recipe(words: list[str], resume: str | None) -> Recipe:
    named = [word for word in words if "=" not in word]
    changes = [word for word in words if "=" in word]
    if len(named) > 1:
        raise InstilError(f"{' '.join(named)}: expected one recipe, then key=value")
    source = named[0] if named else "digits"
    if resume and not named:
        places = (Path(resume), *Path(resume).parents[1:2])  # a run, or a checkpoint in one
        found = [place / "recipe.yaml" for place in places if is_file(place / "recipe.yaml")]
        if not found:
            raise InstilError(f"--resume {resume}: no run there, and no checkpoint of a run")
        source = str(found[0])
    recipe = load_recipe(Recipe, source, changes, RECIPES)
    if recipe.preflight is None or resume is not None:
        return recipe
    before = load_recipe(Recipe, source, [f"preflight={recipe.preflight}"], RECIPES)
    preflight = overrides_from(before, read(recipe.preflight))
    print(f"from {recipe.preflight}: {', '.join(preflight) or 'nothing to change'}")
    return load_recipe(Recipe, source, [*preflight, *changes], RECIPES)


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
