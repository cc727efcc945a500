"""`run.log`: what a run printed, kept in its folder."""

from contextlib import suppress
from pathlib import Path

NAME = "run.log"
_path: Path | None = None


def keep(folder: Path | None) -> None:
    """Append what is printed from here on to `run.log` in a folder; None ends that."""
    global _path
    _path = folder and folder / NAME


def append(text: str) -> None:
    """Append a line, where a log is kept. A disk that is full stops a run elsewhere, not here."""
    if _path is not None:
        with suppress(OSError), _path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
