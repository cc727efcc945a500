"""Files that a command is asked to write at its end."""

from pathlib import Path

from instil.errors import InstilError
from instil.plain import is_dir


def check_output(option: str, path: Path | None, suffix: str = "") -> None:
    """Refuse, before long work, a file that could not be written after it.

    Args:
        option: What names it on the command line.
        path: The file; None where none was asked for.
        suffix: How its name must end.

    Raises:
        InstilError: It ends otherwise, is a folder, or would lie in one that does not exist.
    """
    if path is None:
        return
    if suffix and path.suffix != suffix:
        raise InstilError(f"{option} {path}: expected a file ending in {suffix}")
    if is_dir(path):
        raise InstilError(f"{option} {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InstilError(f"{option} {path}: there is no folder {path.parent}; make it first")
