"""The error for bad input, and how commands report it."""

import functools
import os
import sys
import traceback
from typing import Protocol

from instil.base.runs import log

LONGEST_LINE, MOST_LINES = 1_000, 30
DEBUG = "--debug"


class InstilError(ValueError):
    """Bad input: the message names the value, says what was expected and what to do."""


class Command(Protocol):
    """A `main`: takes arguments, those of the command line if None, and returns an exit code."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


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

    Exit codes: 2 for bad input, 1 for a run that stopped being numbers, 130 for Ctrl-C. With the
    option `--debug`, or INSTIL_DEBUG=1, the stack of the error and of its causes follows.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        debug = DEBUG in words or os.environ.get("INSTIL_DEBUG", "0") not in ("", "0")
        try:
            return main([word for word in words if word != DEBUG])
        except InstilError as error:
            caught, message, code = error, f"error: {one_message(error)}", 2
        except FloatingPointError as error:
            caught, message, code = error, f"stopped: {error}", 1
        except KeyboardInterrupt as error:
            caught, message, code = error, "interrupted: a run goes on with --resume", 130
        except OSError as error:  # a disk that is full, a folder that is not writable
            caught, message, code = error, f"error: {error}", 2
        if os.environ.get("RANK", "0") == "0":
            print(message, file=sys.stderr)  # noqa: T201
            log.append(message)
            if debug:
                traceback.print_exception(_with_causes(caught))
        return code

    return wrapped


def _with_causes(error: BaseException) -> BaseException:
    """The error, with causes that `from None` hides shown again."""
    each: BaseException | None = error
    while each is not None:
        each.__suppress_context__ = each.__cause__ is not None
        each = each.__cause__ or each.__context__
    return error
