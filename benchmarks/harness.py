"""What every benchmark does: read options, print a table, write JSON."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instil.base.runs.report import environment, show, write_json

Rows = Sequence[Mapping[str, str]]
Run = Callable[[argparse.Namespace], tuple[Rows, dict[str, Any]]]


def command(
    run: Run, title: str, options: Mapping[str, Mapping[str, Any]], argv: list[str] | None = None
) -> int:
    """Run a benchmark from the command line.

    Args:
        run: Options to table rows and facts.
        title: Above the table.
        options: `{"--name": keyword arguments of add_argument}`.
        argv: Arguments; those of the process if None.
    """
    parser = argparse.ArgumentParser(description=title, allow_abbrev=False)
    for name, settings in options.items():
        parser.add_argument(name, **settings)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    rows, facts = run(arguments)
    facts |= {"seconds": round(time.perf_counter() - began, 1), "environment": environment()}
    show(title, rows)
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as tables have them."""
    return f"{statistics.mean(values):.3f} ± {deviation(values):.3f}"


def paired(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, calls: int
) -> tuple[float, float, float]:
    """Time two things in turn, so that a busy machine slows both alike.

    Returns:
        Median seconds per call of each, and the median over rounds of the ratio theirs / ours.
    """
    ours()
    theirs()
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        found = {}
        for each in (ours, theirs) if number % 2 else (theirs, ours):
            began = time.perf_counter()
            for _ in range(calls):
                each()
            found[each] = (time.perf_counter() - began) / calls
        times.append((found[ours], found[theirs]))
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    return mine, other, statistics.median(b / a for a, b in times)
