"""How commands that train take a recipe, and answer questions about it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from instil.base.config.keys import keys, show
from instil.base.config.model import C
from instil.base.config.recipes import Layer, layers, recipe_names, resolve
from instil.base.errors import InstilError


def add_recipe_arguments(parser: argparse.ArgumentParser, folder: Path, example: str) -> None:
    """Add a recipe, changes to it, `--resume`, `--show` and `--keys` to a command.

    Args:
        parser: The command's.
        folder: The folder of the named recipes.
        example: A change, for the help.
    """
    parser.epilog = f"recipes: {recipe_names(folder)}"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE key=value",
        help=f"a named recipe or a YAML file, then changes such as {example}",
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="DIR", help="continue the newest run, or this one"
    )
    parser.add_argument("--show", action="store_true", help="print the resolved recipe, and stop")
    parser.add_argument(
        "--keys", nargs="?", const="", metavar="PREFIX", help="print all keys, or those below one"
    )


def split_words(arguments: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The recipe named on the command line, if any, and the changes.

    Raises:
        InstilError: More than one recipe is named.
    """
    if "=" in (arguments.resume or ""):  # `--resume train.steps=9`: a change, not a folder
        arguments.words.append(arguments.resume)
        arguments.resume = ""
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise InstilError(f"{' '.join(named)}: expected one recipe, then key=value")
    return (named[0] if named else None), [word for word in arguments.words if "=" in word]


def asked_recipe(arguments: argparse.Namespace, model: type[C], folder: Path) -> C | None:
    """The recipe a command is asked to carry out; None where it was only asked about it.

    Raises:
        InstilError: The recipe has faults.
    """
    source, changes = split_words(arguments)
    if answered_keys(arguments, model):
        return None
    given = layers(source, changes, folder)
    recipe = resolve(model, given)
    return None if answered_show(arguments, recipe, given) else recipe


def answered_keys(arguments: argparse.Namespace, model: type[BaseModel]) -> bool:
    """Print the keys of a recipe, if asked to."""
    if arguments.keys is not None:
        print(keys(model, arguments.keys))  # noqa: T201
    return arguments.keys is not None


def answered_show(arguments: argparse.Namespace, recipe: BaseModel, given: Sequence[Layer]) -> bool:
    """Print a resolved recipe, if asked to."""
    if arguments.show:
        print(show(recipe, given))  # noqa: T201
    return arguments.show
