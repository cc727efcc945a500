"""Files and folders that appear whole or not at all, whatever kills the process that writes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from instil.base.errors import InstilError
from instil.base.untrusted import is_dir


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which is forced to disk and takes the place of `path` if the block succeeds.

    Raises:
        OSError: It could not be written; the message names `path`, whatever library wrote.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # not writable at all
            partial.unlink(missing_ok=True)  # a full disk needs the room
        raise OSError(f"{path}: cannot be written ({reason(error)})") from error


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` if the block succeeds.

    Raises:
        OSError: It could not be written; the message names `folder`.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        remove(folder)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:  # diffusers' own name no folder
        raise OSError(f"{folder}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder if it exists; a kill meanwhile leaves no half of it under its name."""
    going = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(going, ignore_errors=True)
    if folder.exists():
        folder.rename(going)
        shutil.rmtree(going)


def reason(error: Exception) -> str:
    """The reason of an error without the file name in it, which is that of a temporary file."""
    while isinstance(error.__cause__, OSError | SafetensorError):
        error = error.__cause__
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_output(option: str, path: Path | None, suffix: str = "") -> None:
    """Refuse, before long work, a file that could not be written after it.

    Args:
        option: Name of the option on the command line.
        path: File to be written later; None if the option was not given.
        suffix: Required end of the file's name.

    Raises:
        InstilError: The name ends otherwise, is a folder, or its folder does not exist.
    """
    if path is None:
        return
    if suffix and path.suffix != suffix:
        raise InstilError(f"{option} {path}: expected a file ending in {suffix}")
    if is_dir(path):
        raise InstilError(f"{option} {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InstilError(f"{option} {path}: there is no folder {path.parent}; make it first")


def cache_folder() -> Path:
    """The folder of cached metrics, instructor samples and encoded prompts; it may not exist."""
    return Path(os.environ.get("INSTIL_CACHE", Path.home() / ".cache" / "instil"))
