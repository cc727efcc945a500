"""Trackers of a run: TensorBoard, Weights & Biases, trackio."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator

from instil.base.errors import InstilError
from instil.base.files import write_text

IDENTITY = "tracked-as"


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuse trackers that could not follow a run.

    Raises:
        InstilError: The package is missing, or wandb has no key.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise InstilError(
                f"trackers: {name} is not installed; pip install 'instil[{name}]', or leave it out"
            )
    if "wandb" in trackers and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        known = os.environ.get("WANDB_API_KEY")
        with suppress(OSError, NetrcParseError):
            known = known or netrc().authenticators("api.wandb.ai")
        if not known:
            raise InstilError(
                "trackers: wandb has no key; type `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline"
            )


def start_trackers(
    accelerator: Accelerator, folder: Path, recipe: Mapping[str, Any], step: int
) -> None:
    """Start a run's trackers, or go on with those of a run that is resumed.

    Each run has the name of its folder in the project `instil`; TensorBoard's events lie in that
    folder.

    Args:
        accelerator: Has the trackers.
        folder: The run's folder.
        recipe: The configuration to show, by dotted key.
        step: Updates done.
    """
    if not accelerator.log_with or not accelerator.is_main_process:
        return
    accelerator.project_configuration.logging_dir = str(folder)
    made = folder / IDENTITY  # other machines have runs of this name
    if not made.exists():
        write_text(made, f"{folder.name}-{uuid4().hex[:8]}")
    shown = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in recipe.items()
    }
    identity = made.read_text(encoding="utf-8")
    named = {"name": folder.name, "resume": "allow"}
    options: dict[str, Any] = {
        "wandb": named | {"id": identity, "dir": str(folder)},
        "trackio": named,
        "tensorboard": {"purge_step": step + 1} if step else {},
    }
    accelerator.init_trackers("instil", shown, options)
