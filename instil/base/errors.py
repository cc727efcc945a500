"""The error for bad input, and how commands report it."""

import atexit
import errno
import functools
import gc
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol

from instil.base.runs import log

LONGEST_LINE, MOST_LINES = 1_000, 30
DEBUG = "--debug"
ROOM = {
    errno.EMFILE: "raise the limit of open files: `ulimit -n 4096`",
    errno.ENOSPC: "free some room, or choose a folder on another disk",
    errno.EDQUOT: "free some room, or choose a folder on another disk",
}
NO_MEMORY = "out of memory|can't allocate memory|not enough memory"  # of GPUs and of CPUs
SMALLER = (
    "out of memory; a smaller batch, or a larger train.accumulation, needs less, and "
    "`python -m distill RECIPE --dry-run` says how much"
)

atexit.register(gc.freeze)  # else the interpreter visits each object of torch when it ends: seconds


class InstilError(ValueError):
    """Bad input: the message names the value, says what was expected and what to do."""


class Stopped(KeyboardInterrupt):
    """A run that a signal ended after it was saved; the message says how to go on.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Command(Protocol):
    """A `main`: takes arguments, those of the command line if None, and returns an exit code."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def first_of(names: Sequence[str], most: int = 5) -> str:
    """The first names with commas between them, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_message(error: InstilError) -> str:
    """The printed message of an error, shortened and without control characters."""
    lines = [line[:LONGEST_LINE] + "…" * (len(line) > LONGEST_LINE) for line in _lines(error)]
    more = [f"… and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join(lines[:MOST_LINES] + more)


def _lines(error: InstilError) -> list[str]:
    return [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in str(error).split("\n")
    ]


def command(main: Command) -> Command:
    """Turn errors that a user can mend into one message on stderr, from the first process only.

    Exit codes: 2 for bad input, 1 for a run that stopped being numbers, 130 for Ctrl-C
    before a run began, 128 + n for a run that signal n stopped. With the
    option `--debug`, or INSTIL_DEBUG=1, the stack of the error and of its causes follows.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):  # a terminal of ASCII ends no run
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        words = list(sys.argv[1:] if argv is None else argv)
        debug = DEBUG in words or os.environ.get("INSTIL_DEBUG", "0") not in ("", "0")
        try:
            return main([word for word in words if word != DEBUG])
        except InstilError as error:
            caught, message, code = error, f"error: {one_message(error)}{_room(error)}", 2
        except FloatingPointError as error:
            caught, message, code = error, f"stopped: {error}", 1
        except Stopped as error:
            caught, message, code = error, str(error), 128 + error.number
        except KeyboardInterrupt as error:
            caught, message, code = error, "interrupted", 130
        except OSError as error:  # a disk that is full, a folder that is not writable
            caught, message, code = error, f"error: {error}{_room(error)}", 2
        except (RuntimeError, MemoryError) as error:
            first = (str(error).splitlines() or [""])[0][:200]
            if not (isinstance(error, MemoryError) or re.search(NO_MEMORY, first)):
                raise
            caught, message, code = error, f"error: {SMALLER} ({first})", 2
        if os.environ.get("RANK", "0") == "0":
            print(message, file=sys.stderr)  # noqa: T201
            log.append(message)
            if debug:
                traceback.print_exception(_with_causes(caught))
        return code

    return wrapped


def _room(error: Exception) -> str:
    """What to do where a disk is full or files are too many; empty for other errors."""
    found = [remedy for number, remedy in ROOM.items() if os.strerror(number) in str(error)]
    return "".join(f"; {remedy}" for remedy in found)


def _with_causes(error: BaseException) -> BaseException:
    """The error, with causes that `from None` hides shown again."""
    each: BaseException | None = error
    while each is not None:
        each.__suppress_context__ = each.__cause__ is not None
        each = each.__cause__ or each.__context__
    return error
