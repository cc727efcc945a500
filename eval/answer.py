"""What every command of `python -m eval` answers."""

from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        title: Heading of the table: what was measured, and how.
        rows: Rows of the table.
        facts: All figures, for JSON; every estimate with its standard error.
        verdict: One sentence, where there is a decision.
    """

    title: str
    rows: Rows
    facts: dict[str, Any]
    verdict: str | None = None


def device() -> Any:
    """The device Accelerate chooses."""
    from instil.base.runs.accelerator import accelerator_for

    return accelerator_for(None, (), "runs").device
