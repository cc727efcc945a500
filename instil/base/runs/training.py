"""Begins a training on images, and writes its lines of a model card."""

from collections.abc import Callable
from typing import Any

import torch

from instil.base import data
from instil.base.card import Origin
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
        recipe: A recipe with `data`, `batch`, `steps` and `precision`, and those of `RunRecipe`.
        fresh: Builds the state before the first update from recipe, images and device.
        resume: The run to continue, or None; see `instil.base.runs.run.Run`.

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
    begun = run.Run(recipe, recipe.steps, recipe.batch, state, facts, resume, accelerator)
    if accelerator.is_main_process:
        note(
            f"{begun.folder}: {recipe.data}, {len(images)} images, "
            f"{accelerator.num_processes} process(es), from step {state.step}"
        )
    return begun, images


def origin(images: data.Images, command: str) -> Origin:
    """The facts a card gives to programs."""
    return Origin(data=images.source, digest=images.digest(), command=command)


def card_lines(images: data.Images, command: str, *lines: str) -> str:
    """A card's list: the images, the command, further lines, the machine."""
    machine = ", ".join(f"{key} {value}" for key, value in environment().items())
    parts = [
        f"Data: `{images.source}`, {len(images)} images of the shape {images.shape}, "
        f"digest {images.digest()}",
        f"Command: `{command}`",
        *lines,
        f"Machine: {machine}",
    ]
    return "\n".join(f"- {part}" for part in parts) + "\n"
