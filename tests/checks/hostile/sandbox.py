"""Runs one case after the other in a process that may hang, crash or eat memory.

A worker is forked, so that what the cases import is there already. It stops a case by a timer,
which counts the seconds of the processor so that a busy machine changes nothing, and by a bound on
its address space, and measures its peak of resident memory; the parent ends a worker that does not
even answer to that, and starts the next one behind the case it died in.
"""

import atexit
import contextlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from instil.base.errors import InstilError, one_message

SECONDS, BYTES = 5.0, 512 << 20
ADDRESSES = 2 * BYTES  # more than memory: a file that is mapped takes addresses alone
PATIENCE = 60.0  # of the parent, for what waits and does not compute
ROOT = f"{Path(__file__).parents[3]}/"

# Writes a hostile input into a folder and returns what reads it.
Case = Callable[[int, Path], Callable[[], Any]]


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        number: Of the case; with the seed, it makes the same input again.
        verdict: Accepted, refused by an `InstilError`, or a fault.
        why: Of what is not accepted.
        seconds: Of the processor, for reading.
        bytes: Resident memory at its peak, beyond what was there before.
    """

    number: int
    verdict: Literal["accepted", "refused", "fault"]
    why: str = ""
    seconds: float = 0.0
    bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class OverTimeError(BaseException):
    """The timer went off; no `Exception`, so that nothing which is tried catches it."""


def scratch() -> Path:
    """A folder for what cases share; goes away with this process, not with its workers."""
    folder, owner = Path(tempfile.mkdtemp(prefix="hostile-")), os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder


def hunt(case: Case, numbers: range) -> Iterator[Outcome]:
    """The outcome of each case, by number."""
    context = multiprocessing.get_context("fork")
    number = numbers.start
    while number < numbers.stop:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(case, range(number, numbers.stop), theirs))
        worker.start()
        theirs.close()
        while number < numbers.stop:
            try:
                if broken := ours.recv():  # making it may take its time
                    raise RuntimeError(broken)
                if ours.poll(PATIENCE):
                    yield ours.recv()
                    number += 1
                    continue
                worker.kill()
                why = f"no answer for {PATIENCE:g} seconds"
            except EOFError:
                worker.join()
                why = f"the process died, exit code {worker.exitcode}"
            yield Outcome(number, "fault", why)
            number += 1
            break
        worker.join()


def _work(case: Case, numbers: range, parent: Connection) -> None:
    signal.signal(signal.SIGPROF, _over)
    silence = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
    sys.stdout = sys.stderr = silence
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        for number in numbers:
            folder = root / str(number)
            folder.mkdir()
            try:
                read = case(number, folder)
                parent.send(None)
            except Exception as error:  # of this driver, not of what it tries
                parent.send(f"case {number} cannot be made: {error!r}, {_where(error)}")
                raise
            parent.send(judge(read, number, folder))
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def judge(read: Callable[[], Any], number: int, folder: Path) -> Outcome:
    """Read what was made in a folder, and hold what happens against the law."""
    before = _contents(folder)
    held = _reset_peak()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    began = time.process_time()
    verdict, why = "accepted", ""
    try:
        with _limited():
            read()
    except InstilError as error:
        verdict, why = "refused", one_message(error)
    except OverTimeError as error:
        verdict, why = "fault", f"not done in {SECONDS:g} seconds ({_where(error)})"
    except BaseException as error:  # whatever else there is, a user would see its traceback
        verdict = "fault"
        why = f"{type(error).__name__}: {str(error)[:300]} ({_where(error)})"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    seconds, taken = time.process_time() - began, max(0, _memory("VmHWM") - held)
    if verdict != "fault":
        if seconds > SECONDS:
            verdict, why = "fault", f"took {seconds:.1f} seconds"
        elif taken > BYTES:
            verdict, why = "fault", f"took {taken >> 20} MB"
        elif verdict == "refused" and _contents(folder) != before:
            verdict, why = "fault", f"left something behind after: {why}"
        elif verdict == "refused" and not why.strip():
            verdict, why = "fault", "an error without a message"
    return Outcome(number, verdict, why, round(seconds, 4), taken)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Bound the time and the address space of what happens inside."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ADDRESSES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _over(_: int, __: FrameType | None) -> None:
    raise OverTimeError


def _where(error: BaseException) -> str:
    """The last lines of ours that were being run, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if ROOT in frame.filename and "benchmarks" not in frame.filename
    ]
    return ", ".join(
        f"{frame.filename.removeprefix(ROOT)}:{frame.lineno}" for frame in [*own[-2:], frames[-1]]
    )


def _contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with its first bytes and its size."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = None
        if path.is_file():
            with path.open("rb") as file:
                found[name] = b"%d %b" % (path.stat().st_size, file.read(1 << 16))
    return found


def _memory(name: str) -> int:
    """A line of this process's status, in bytes."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


def _reset_peak() -> int:
    """Forget the peak of resident memory; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")
