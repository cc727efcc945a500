"""Objects of the user's own code, named `package.module:Class` or `package.module:function`."""

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from instil.base.errors import InstilError
from instil.base.shadowed import HOME, PACKAGES

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# Beginnings of the names of files that are not the user's.
FOREIGN = (
    *(f"{HOME / package}{os.sep}" for package in ("instil", *PACKAGES)),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "<frozen",
)


_FILES: dict[str, str] = {}  # what was loaded by the name of a file, by the name of its module


def name_of(model: type) -> str:
    """The name that `load` finds a class by."""
    place = _FILES.get(model.__module__, model.__module__)
    return f"{place}:{model.__qualname__}"


def is_name(text: str) -> bool:
    """Whether a text has the form of a name that `load` takes."""
    place, _, attribute = text.rpartition(":")
    return bool(NAME.fullmatch(text)) or (place.endswith(".py") and attribute.isidentifier())


def load(name: str) -> Any:
    """Import what a recipe names; the working folder is searched last.

    Args:
        name: `package.module:Class`, or `path/to/file.py:Class`. The module is executed, without
            the words of our command line.

    Raises:
        InstilError: There is no such module, it raises while it is imported, or has no such name.
    """
    place, _, attribute = name.rpartition(":")
    if not is_name(name):
        raise InstilError(f"{name}: expected package.module:Class or path/to/file.py:Class")
    if os.getcwd() not in sys.path:  # noqa: PTH109, entries of sys.path are strings
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        with mock.patch.object(sys, "argv", sys.argv[:1]):
            module = _of_file(Path(place)) if place.endswith(".py") else place
            importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise InstilError(
                f"{name}: there is no module {missing}; install it, or run the command from the "
                "folder it lies in"
            ) from error
        raise InstilError(f"{name}: importing {place} fails{fault(error)}") from error
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except (AttributeError, ImportError) as error:
        raise InstilError(f"{name}: {place} has no {attribute}") from error


def _of_file(path: Path) -> str:
    """Execute a file as a module of its name that may import its neighbours; returns the name."""
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent.resolve()))
    sys.modules[path.stem] = module
    _FILES[path.stem] = str(path)
    spec.loader.exec_module(module)
    return path.stem


@contextmanager
def running(before: str, after: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises into one sentence.

    Args:
        before: The sentence up to the place of the fault.
        after: The rest of it.

    Raises:
        InstilError: The block raised anything but a Ctrl-C.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        raise InstilError(f"{before}{fault(error)}{after}") from error


def fault(error: BaseException) -> str:
    """The last line of the user's own that was running, and what was raised."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(FOREIGN)
    ]
    if isinstance(error, SyntaxError):
        frames = [(error.filename or "", error.lineno)]
    where = f" at {frames[-1][0]} line {frames[-1][1]}" if frames else ""
    kind = "" if isinstance(error, InstilError) else f"{type(error).__name__}: "
    return f"{where} ({kind}{' '.join(str(error).split())[:300]})"
