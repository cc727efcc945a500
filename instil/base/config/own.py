"""Objects of the user's own code, named `package.module:Class` or `package.module:function`."""

import importlib
import os
import pkgutil
import re
import sys
import traceback
from typing import Any

from instil.base.errors import InstilError

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load(name: str) -> Any:
    """Import what a recipe names; the working folder is searched last.

    Args:
        name: `package.module:Class`. Its module is executed.

    Raises:
        InstilError: There is no such module, it raises while it is imported, or has no such name.
    """
    if not NAME.fullmatch(name):
        raise InstilError(f"{name}: expected package.module:Class")
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109, entries of sys.path are strings
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise InstilError(
                f"{name}: there is no module {missing}; install it, or run the command from the "
                "folder it lies in"
            ) from error
        raise InstilError(f"{name}: importing {module} fails{_place(error)}") from error
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError) as error:
        raise InstilError(f"{name}: {module} has no {attribute}") from error


def _place(error: BaseException) -> str:
    """Where in the user's module an import failed, and why."""
    ours = ("<frozen importlib", __file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if not frame.filename.startswith(ours)]
    theirs = [(frame.filename, frame.lineno) for frame in frames]
    theirs = [(file, line) for file, line in theirs if file == theirs[0][0]]
    if isinstance(error, SyntaxError):
        theirs = [(error.filename, error.lineno)]
    where = f" at {theirs[-1][0]} line {theirs[-1][1]}" if theirs else ""
    return f"{where} ({type(error).__name__}: {' '.join(str(error).split())})"
