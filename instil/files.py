"""Files and folders that appear whole or not at all, whatever kills the process that writes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


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
    """What went wrong, without the name of the file: users know another one."""
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
