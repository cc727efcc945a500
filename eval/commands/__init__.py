"""One module per command of `python -m eval`: its options, `add`, and what it does, `run`."""

from pathlib import Path
from typing import Any

from instil.errors import InstilError

Answer = tuple[list[dict[str, str]], dict[str, Any]]  # rows of a table, facts for JSON


def check_paths(*given: tuple[str, Path | None]) -> None:
    """Refuse files that could not be written in the end.

    Args:
        given: Options and what they name.

    Raises:
        InstilError: There is no folder for one of them.
    """
    for option, path in given:
        if path and not path.parent.is_dir():
            raise InstilError(f"{option} {path}: there is no folder {path.parent}; make it first")


def device() -> Any:
    """The one that Accelerate chooses."""
    from instil.run import accelerator_for

    return accelerator_for(None, (), "runs").device
