"""How commands that train take a recipe, and answer questions about it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from instil.base.config.keys import keys, show
from instil.base.config.model import C
from instil.base.config.recipes import Layer, recipe_names, resolve
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


def asked_recipe(
    arguments: argparse.Namespace,
    model: type[C],
    read: Callable[[str | None, list[str]], Sequence[Layer]],
) -> C | None:
    """The recipe a command is asked to carry out; None where it was only asked about it.

    Args:
        arguments: The parsed command line.
        model: The recipe's class.
        read: Turns the name of a recipe, or None, and the changes into layers.

    Raises:
        InstilError: More than one recipe is named, or it has faults.
    """
    if "=" in (arguments.resume or ""):  # `--resume train.steps=9`: a change, not a folder
        arguments.words.append(arguments.resume)
        arguments.resume = ""
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise InstilError(f"{' '.join(named)}: expected one recipe, then key=value")
    if arguments.keys is not None:
        print(keys(model, arguments.keys))  # noqa: T201
        return None
    changes = [word for word in arguments.words if "=" in word]
    given = read(named[0] if named else None, changes)
    recipe = resolve(model, given)
    if arguments.show:
        print(show(recipe, given))  # noqa: T201
        return None
    return recipe
