"""The one error a user can mend, and how commands report it."""

import functools
import os
import sys
from typing import Protocol


class InstilError(ValueError):
    """Bad input: the message names the value, says what was expected and what to do."""


class Command(Protocol):
    """A `main`: arguments in (of the command line if None), exit code out."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def command(main: Command) -> Command:
    """Turn `InstilError` into one message on stderr and exit code 2, on the first process only."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except InstilError as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 2

    return wrapped
