"""One training run of an instructor, from recipe to a folder that `load` reads."""

import time
from pathlib import Path
from typing import Any

from instil.base.card import model_card
from instil.base.processes import on_main
from instil.base.runs import training
from instil.base.runs.accelerator import finish
from instructors.denoiser import labelled
from instructors.training.train import TrainRecipe, fresh, save_pipeline, train

INTRODUCTION = "A small diffusion model with EDM preconditioning: an instructor for distillation.\n"
USAGE = """
`DiffusionPipeline.from_pretrained` of diffusers loads it, and `pipeline(num_inference_steps=36)`
samples it by Euler's method.
"""


def run_training(recipe: TrainRecipe, resume: str | None, command: str) -> Path:
    """Train as the recipe says.

    Args:
        recipe: The training.
        resume: The run to continue, or None; see `instil.base.runs.run.Run`.
        command: The command line that started it, for the card.

    Returns:
        The folder of the instructor, in diffusers' own format.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    run, images = training.begin(recipe, fresh, resume)
    state: Any = run.state
    began = time.perf_counter()
    condition = labelled(images.labels)
    updates = train(state, images.pixels, condition, run.recipe, run.accelerator)
    with run.writing():
        for _ in run.follow(updates):
            pass
    denoiser = state.average.module.cpu()
    seconds, parameters = time.perf_counter() - began, sum(p.numel() for p in denoiser.parameters())
    lines = training.card_lines(
        images,
        command,
        f"Seed {recipe.seed}; {recipe.steps} updates of {recipe.batch} images in "
        f"{seconds:.0f} seconds",
        f"Noise levels from {denoiser.sigma_min:g} to {denoiser.sigma_max:g}, "
        f"sigma_data {denoiser.sigma_data:g}; {parameters} parameters",
    )
    card = model_card(
        recipe.name,
        f"{INTRODUCTION}\n{lines}{USAGE}",
        "apache-2.0",
        ("diffusion", "instil-instructor"),
        "diffusers",
        training.origin(images, command),
    )
    folder = run.folder / "instructor"
    on_main(lambda: save_pipeline(denoiser, folder, card))
    finish(run.accelerator)
    return folder
