"""A run's progress: metrics on disk, a bar, trackers, notes."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instil.base.errors import InstilError
from instil.base.files import cache_folder, reason, write_text
from instil.base.runs import log

P = TypeVar("P")


def new_folder(root: Path, name: str) -> Path:
    """Create `root/name`, or `name-2`, `name-3`, … where that exists: no run is overwritten.

    Raises:
        OSError: The folder cannot be created.
    """
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise OSError(f"{folder}: cannot be created ({error.strerror}); set output") from None
        else:
            return folder


METRICS = "metrics.jsonl"


class Monitor:
    """Progress on the screen and numbers in `metrics.jsonl`; silent where `active` is False.

    On a terminal it is a bar; elsewhere one plain line per report.

    Args:
        folder: The run's folder.
        steps: Steps of the whole run.
        start: Steps done before, when resumed.
        batch: Images per step, for the speed.
        active: Whether this process reports.
    """

    def __init__(self, folder: Path, steps: int, start: int, batch: int, active: bool) -> None:
        self.path, self.batch, self.active = folder / METRICS, batch, active
        self.steps = steps
        self.last, self.clock = start, time.perf_counter()
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            disable=not active or not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(folder.name, total=steps, completed=start, text="")
        if active:
            self._forget_after(start)

    def __enter__(self) -> "Monitor":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show and write numbers; adds the images per second since the last call."""
        now = time.perf_counter()
        speed = (step - self.last) * self.batch / max(now - self.clock, 1e-9)
        self.last, self.clock = step, now
        self.write({"step": step, **values, "images_per_second": round(speed, 1)})
        if not self.active:
            return
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        self.bar.update(self.task, completed=step, text=f"{speed:.0f} img/s  {text}")
        if self.bar.disable:
            left = (self.steps - step) * self.batch / max(speed, 1e-9)
            note(f"step {step}/{self.steps}  {speed:.0f} img/s  {left:.0f} s left  {text}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (evaluation, pictures) out of the speed."""
        began = time.perf_counter()
        yield
        self.clock += time.perf_counter() - began

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record to `metrics.jsonl`."""
        if not self.active:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InstilError(f"{self.path}: cannot be written ({reason(error)})") from error

    def records(self) -> list[dict[str, Any]]:
        """Everything in `metrics.jsonl` so far, but for lines that are not whole.

        Raises:
            InstilError: The file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InstilError(f"{self.path}: cannot be read ({error.strerror})") from None
        return [record for line in lines if (record := _record(line)) is not None]

    def _forget_after(self, start: int) -> None:
        """Drop what a killed run wrote after the checkpoint it is resumed from."""
        kept = [record for record in self.records() if record["step"] <= start]
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of numbers, or None where it was cut off or changed."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def note(text: str) -> None:
    """One plain line to stderr, and to `run.log` inside a run: remarks, never results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
    log.append(text)


@contextmanager
def cache_may_fail() -> Iterator[None]:
    """Go on, and say so, where the cache cannot be written inside the block."""
    try:
        yield
    except OSError as error:
        note(
            f"{cache_folder()}: the cache cannot be written ({reason(error)}) and is done without; "
            "INSTIL_CACHE names another folder"
        )


def track(parts: Sequence[P], label: str | None) -> Iterator[P]:
    """Go through `parts` with a bar on stderr, on a terminal and where there is a label."""
    silent = label is None or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=silent) as bar:
        yield from bar.track(parts, description=label or "")
