"""Recipes by name or by path, with changes on top."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instil.base import untrusted
from instil.base.config.model import C, merge, validate
from instil.base.config.text import read_overrides, read_yaml
from instil.base.errors import InstilError


def recipe_names(folder: Path) -> str:
    """The named recipes in a folder, as messages and help texts list them."""
    return ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))


def load_recipe(model: type[C], source: str | None, overrides: Iterable[str], folder: Path) -> C:
    """A recipe by name or path, with `key.path=value` on top.

    Args:
        model: Its type.
        source: A name of a file in `folder`, a path, or None for overrides alone.
        overrides: As on the command line.
        folder: Where named recipes lie.

    Raises:
        InstilError: No such recipe, or it has faults; all of them are listed.
    """
    content: Mapping[str, Any] = {}
    if source is not None:
        named = folder / f"{source}.yaml"
        path = named if untrusted.is_file(named) and not untrusted.is_file(source) else Path(source)
        if not untrusted.is_file(path):
            names = recipe_names(folder)
            near = difflib.get_close_matches(source, names.split(", "), n=1)
            hint = f"did you mean {near[0]}?" if near else f"named ones: {names}"
            raise InstilError(f"{source}: no such recipe; {hint}")
        content = read_yaml(path)
    return validate(model, merge(content, read_overrides(overrides)))
