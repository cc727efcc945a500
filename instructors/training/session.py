"""One training run of an instructor, from recipe to a folder that `load` reads."""

import time
from pathlib import Path
from typing import Any

from instil.base.processes import on_main
from instil.base.runs import training
from instil.base.runs.accelerator import finish
from instructors.denoiser import labelled
from instructors.training.train import TrainRecipe, fresh, save_pipeline, train

CARD = """---
library_name: diffusers
license: apache-2.0
tags: [diffusion, instil-instructor]
---

# {name}

A small diffusion model with EDM preconditioning: an instructor for distillation.

- Data: `{data}`, {count} images of the shape {shape}, digest {digest}
- Command: `{command}`
- Seed {seed}; {steps} updates of {batch} images in {seconds:.0f} seconds
- Noise levels from {low:g} to {high:g}, sigma_data {sigma_data:g}; {parameters} parameters
- Machine: {machine}

`DiffusionPipeline.from_pretrained` of diffusers loads it, and `pipeline(num_inference_steps=36)`
samples it by Euler's method.
"""


def session(recipe: TrainRecipe, resume: str | None, command: str) -> Path:
    """Train as the recipe says.

    Args:
        recipe: What to do.
        resume: As in `instil.base.runs.run.Run`.
        command: How it was started, for the card.

    Returns:
        The folder of the instructor, in diffusers' own format.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    this, images = training.begin(recipe, fresh, resume)
    state: Any = this.state
    began = time.perf_counter()
    condition = labelled(images.labels)
    updates = train(state, images.pixels, condition, this.recipe, this.accelerator)
    with this.writing():
        for _ in this.follow(updates):
            pass
    denoiser = state.average.module.cpu()
    about = training.card_facts(this.recipe, images, command) | {
        "seconds": time.perf_counter() - began,
        "low": denoiser.sigma_min,
        "high": denoiser.sigma_max,
        "sigma_data": denoiser.sigma_data,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
    }
    folder = this.folder / "instructor"
    on_main(lambda: save_pipeline(denoiser, folder, CARD.format(**about)))
    finish(this.accelerator)
    return folder
