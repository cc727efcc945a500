"""One module per command of `python -m eval`: its options, `add`, and what it does, `run`."""

from typing import Any

Answer = tuple[list[dict[str, str]], dict[str, Any]]  # rows of a table, facts for JSON


def device() -> Any:
    """The one that Accelerate chooses."""
    from instil.base.runs.accelerator import accelerator_for

    return accelerator_for(None, (), "runs").device
