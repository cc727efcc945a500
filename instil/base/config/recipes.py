"""Recipes by name or by path, on top of the recipes they extend, with changes on top."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instil.base import untrusted
from instil.base.config.model import C, merge, validate
from instil.base.config.text import read_overrides, read_yaml
from instil.base.errors import InstilError

EXTENDS = "extends"
COMMAND_LINE = "command line"
# A source of values, as `--show` names it, and its values.
Layer = tuple[str, Mapping[str, Any]]


def named_recipes(folder: Path) -> dict[str, Path]:
    """The files of the named recipes below a folder, by name."""
    return {file.stem: file for file in sorted(folder.rglob("*.yaml"), key=lambda path: path.stem)}


def recipe_names(folder: Path) -> str:
    """The named recipes below a folder, as messages and help texts list them."""
    return ", ".join(named_recipes(folder))


def load_recipe(model: type[C], source: str | None, overrides: Iterable[str], folder: Path) -> C:
    """Read a recipe by name or path, with `key.path=value` on top.

    Args:
        model: The recipe's class.
        source: A name of a file below `folder`, a path, or None for overrides alone.
        overrides: Changes, as on the command line.
        folder: The folder of the named recipes.

    Raises:
        InstilError: No such recipe, or it has faults; all of them are listed.
    """
    return resolve(model, layers(source, overrides, folder))


def resolve(model: type[C], given: Iterable[Layer]) -> C:
    """Build the recipe that layers make, each on top of those before it.

    Raises:
        InstilError: It has faults; all of them are listed.
    """
    content: dict[str, Any] = {}
    for _, values in given:
        content = merge(content, values)
    return validate(model, content)


def layers(source: str | None, overrides: Iterable[str], folder: Path) -> list[Layer]:
    """The recipes that `source` extends, the oldest first, `source` itself, and the changes.

    The arguments are those of `load_recipe`.

    Raises:
        InstilError: A file is missing, cannot be read, or extends itself.
    """
    found: list[Layer] = []
    chain: list[Path] = []
    path = None if source is None else _locate(source, folder)
    while path is not None:
        if path.resolve() in (file.resolve() for file in chain):
            names = " -> ".join(str(file) for file in [*chain, path])
            raise InstilError(f"{path}: extends itself ({names}); drop one `{EXTENDS}`")
        chain.append(path)
        content = read_yaml(path)
        parent = content.pop(EXTENDS, None)
        found.insert(0, (path.stem if folder in path.parents else str(path), content))
        path = None if parent is None else _parent(parent, path, folder)
    return [*found, (COMMAND_LINE, read_overrides(overrides))]


def _parent(name: Any, child: Path, folder: Path) -> Path:
    """The file that `child` extends."""
    if not isinstance(name, str):
        raise InstilError(f"{child}: {EXTENDS}: expected a recipe's name or path, got {name!r}")
    named = named_recipes(folder)
    try:
        return named.get(name) or _locate(str(child.parent / Path(name).expanduser()), folder)
    except InstilError as error:
        raise InstilError(f"{child}: {EXTENDS}: {error}") from error


def _locate(source: str, folder: Path) -> Path:
    """The file of a recipe; one in the working folder goes before a named one."""
    named = named_recipes(folder)
    if untrusted.is_file(source):
        return Path(source)
    if source in named:
        return named[source]
    if untrusted.is_dir(source):
        raise InstilError(f"{source}: is a folder; expected a recipe, a YAML file")
    if untrusted.exists(source):
        raise InstilError(f"{source}: is no regular file; write the recipe to one")
    near = difflib.get_close_matches(Path(source).stem, named, n=1)
    hint = f"did you mean {near[0]}?" if near else f"named ones: {', '.join(named)}"
    raise InstilError(f"{source}: no such recipe; {hint}")
