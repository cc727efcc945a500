"""One adversarial training, from recipe to folders that `students.load` reads."""

import time
from pathlib import Path
from typing import Any

from instil.base.card import model_card
from instil.base.files import appearing
from instil.base.processes import on_main
from instil.base.runs import training
from instil.base.runs.accelerator import finish
from students.gan.stylegan2 import StyleGAN2
from students.gan.train import TrainRecipe, fresh, train

INTRODUCTION = """\
A small StyleGAN2 generator after {done:,} updates of its adversarial training: something to refine.
"""
USAGE = """
`python -m students sample FOLDER --seeds 0-63 --grid out.png` draws it,
`accelerate launch -m distill digits-gan student.weights=FOLDER` refines it without data.
"""


def run_training(recipe: TrainRecipe, resume: str | None, command: str) -> Path:
    """Train as the recipe says.

    Args:
        recipe: The training.
        resume: The run to continue, or None; see `instil.base.runs.run.Run`.
        command: The command line that started it, for the cards.

    Returns:
        The folder of the last student; earlier ones lie beside it, named by their step.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    run, images = training.begin(recipe, fresh, resume)
    state: Any = run.state
    began = time.perf_counter()
    parameters = sum(p.numel() for p in state.generator.parameters())

    def write(folder: Path) -> None:
        seconds = time.perf_counter() - began
        lines = training.card_lines(
            images,
            command,
            f"Seed {recipe.seed}; {state.step} updates of {recipe.batch} images in "
            f"{seconds:.0f} seconds",
            f"{parameters:,} parameters; the average with a half-life of {recipe.average:g} images",
        )
        card = model_card(
            folder.name,
            f"{INTRODUCTION.format(done=state.step)}\n{lines}{USAGE}",
            "apache-2.0",
            ("gan", "instil-student"),
            "instil",
            training.origin(images, command),
        )
        save(state.average.module, folder, card)

    with run.writing():
        for report in run.follow(train(state, images, run.recipe, run.accelerator)):
            if report.step in run.recipe.snapshots:
                folder = run.folder / f"student-{report.step:08d}"
                on_main(lambda folder=folder: write(folder))
    folder = run.folder / "student"
    on_main(lambda: write(folder))
    finish(run.accelerator)
    return folder


def save(student: StyleGAN2, folder: Path, card: str) -> None:
    """Write a student's folder with its model card."""
    with appearing(folder) as partial:
        (partial / "README.md").write_text(card, encoding="utf-8")  # else huggingface_hub's own
        student.save_pretrained(partial)
