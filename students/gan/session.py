"""One adversarial training, from recipe to folders that `students.load` reads."""

import time
from pathlib import Path
from typing import Any

from instil.base.files import appearing
from instil.base.processes import on_main
from instil.base.runs import training
from instil.base.runs.accelerator import finish
from students.gan.stylegan2 import StyleGAN2
from students.gan.train import TrainRecipe, fresh, train

CARD = """---
library_name: instil
license: apache-2.0
tags: [gan, instil-student]
---

# {title}

A small StyleGAN2 generator after {done:,} updates of its adversarial training: something to refine.

- Data: `{data}`, {count} images of the shape {shape}, digest {digest}
- Command: `{command}`
- Seed {seed}; {done} updates of {batch} images in {seconds:.0f} seconds
- {parameters:,} parameters; the average with a half-life of {average:g} images
- Machine: {machine}

`python -m students sample FOLDER --seeds 0-63 --grid out.png` draws it,
`accelerate launch -m distill digits-gan student.weights=FOLDER` refines it without data.
"""


def session(recipe: TrainRecipe, resume: str | None, command: str) -> Path:
    """Train as the recipe says.

    Args:
        recipe: What to do.
        resume: As in `instil.base.runs.run.Run`.
        command: How it was started, for the cards.

    Returns:
        The folder of the last student; earlier ones lie beside it, named by their step.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    this, images = training.begin(recipe, fresh, resume)
    state: Any = this.state
    began = time.perf_counter()
    about = training.card_facts(this.recipe, images, command) | {
        "parameters": sum(p.numel() for p in state.generator.parameters()),
    }

    def write(folder: Path) -> None:
        facts = about | {"done": state.step, "seconds": time.perf_counter() - began}
        save(state.average.module, folder, CARD.format(title=folder.name, **facts))

    with this.writing():
        for report in this.follow(train(state, images, this.recipe, this.accelerator)):
            if report.step in this.recipe.snapshots:
                folder = this.folder / f"student-{report.step:08d}"
                on_main(lambda folder=folder: write(folder))
    folder = this.folder / "student"
    on_main(lambda: write(folder))
    finish(this.accelerator)
    return folder


def save(student: StyleGAN2, folder: Path, card: str) -> None:
    """Write a student's folder with its model card."""
    with appearing(folder) as partial:
        (partial / "README.md").write_text(card, encoding="utf-8")  # else huggingface_hub's own
        student.save_pretrained(partial)
