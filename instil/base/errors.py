"""The one error a user can mend, and how commands report it."""

import functools
import os
import sys
from typing import Protocol

from instil.base.runs import log

LONGEST_LINE, MOST_LINES = 1_000, 30


class InstilError(ValueError):
    """Bad input: the message names the value, says what was expected and what to do."""


class Command(Protocol):
    """A `main`: arguments in (of the command line if None), exit code out."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def one_message(error: InstilError) -> str:
    """What is printed of an error: a file's own words may be long, or talk to the terminal."""
    lines = [line[:LONGEST_LINE] + "…" * (len(line) > LONGEST_LINE) for line in _lines(error)]
    more = [f"… and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join(lines[:MOST_LINES] + more)


def _lines(error: InstilError) -> list[str]:
    return [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in str(error).split("\n")
    ]


def command(main: Command) -> Command:
    """Turn what a user can mend into one message on stderr, from the first process only.

    Exit codes: 2 for bad input, 1 for a run that stopped being numbers, 130 for Ctrl-C.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except InstilError as error:
            message, code = f"error: {one_message(error)}", 2
        except FloatingPointError as error:
            message, code = f"stopped: {error}", 1
        except KeyboardInterrupt:
            message, code = "interrupted: a run goes on with --resume", 130
        except OSError as error:  # a disk that is full, a folder that is not writable
            message, code = f"error: {error}", 2
        if os.environ.get("RANK", "0") == "0":
            print(message, file=sys.stderr)  # noqa: T201
            log.append(message)
        return code

    return wrapped
