"""One numbered experiment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.answer import Rows


@dataclass(frozen=True)
class Experiment:
    """A claim of the theory, and the code that tests it.

    Attributes:
        claim: The expected outcome, in one line.
        run: Function from a scale in (0, 1] (1 as reported; tests take less) to table rows and JSON
            facts. The fact `holds` says whether the claim held.
        minutes: Rough duration on one core at scale 1.
    """

    claim: str
    run: Callable[[float], tuple[Rows, dict[str, Any]]]
    minutes: float = 1.0
