"""How every training on images begins, and what its card says of it."""

from collections.abc import Callable
from typing import Any

import torch

from instil.base import data
from instil.base.errors import InstilError
from instil.base.runs import run
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import note
from instil.base.runs.report import environment


def begin(
    recipe: Any, fresh: Callable[[Any, data.Images, torch.device], Any], resume: str | None
) -> tuple[run.Run, data.Images]:
    """Read the images, build the state and open the run, or go on with it.

    Args:
        recipe: With data, batch, steps and precision, and what `instil.base.runs.run.Run` asks for.
        fresh: Recipe, images and device to the state before the first update.
        resume: As in `instil.base.runs.run.Run`.

    Returns:
        The run, which holds recipe, state and accelerator, and the images.

    Raises:
        InstilError: Bad input, before any long work.
    """
    accelerator = accelerator_for(recipe.precision, (), recipe.output)
    images = data.load(recipe.data)
    if recipe.batch % accelerator.num_processes:
        raise InstilError(
            f"batch: {recipe.batch} does not divide into {accelerator.num_processes} processes"
        )
    recipe = recipe.replace(precision=accelerator.mixed_precision)
    state = fresh(recipe, images, accelerator.device)
    facts = {"data": images.digest()}
    this = run.Run(recipe, recipe.steps, recipe.batch, state, facts, resume, accelerator)
    if accelerator.is_main_process:
        note(
            f"{this.folder}: {recipe.data}, {len(images)} images, "
            f"{accelerator.num_processes} process(es), from step {state.step}"
        )
    return this, images


def card_facts(recipe: Any, images: data.Images, command: str) -> dict[str, Any]:
    """What the card of any such training says: its recipe, data, command and machine."""
    return recipe.model_dump() | origin(images, command)


def origin(images: data.Images, command: str) -> dict[str, Any]:
    """What the card of anything made from images says of them, and of how it was made."""
    return {
        "data": images.source,
        "count": len(images),
        "shape": images.shape,
        "digest": images.digest(),
        "command": command,
        "machine": ", ".join(f"{key} {value}" for key, value in environment().items()),
    }
