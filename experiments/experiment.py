"""One numbered experiment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Rows


@dataclass(frozen=True)
class Experiment:
    """Something the theory claims, and the code that finds out.

    Attributes:
        claim: What is expected, in one line.
        run: Scale in (0, 1] (1 = as reported; tests take less) to table rows and JSON facts.
            The facts of an experiment hold `"holds": bool`.
        minutes: On one core at scale 1, about.
    """

    claim: str
    run: Callable[[float], tuple[Rows, dict[str, Any]]]
    minutes: float = 1.0
