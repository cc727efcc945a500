"""Bytes of an update, computed: this loop under its memory keys against the authors' scheme.

    python -m benchmarks.memory [--recipe sdxl] [--images 1] [--json PATH]

Both run on tensors without values, so no weights are needed. The authors' scheme is float32 with
three full copies beside the instructor and two generations (`benchmarks/authors_loop.py`); its Adam
walks parameter by parameter, which needs less than on a GPU.
"""

import argparse
import sys
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.authors_loop import AuthorsLoop
from benchmarks.harness import Rows, command
from distill.__main__ import RECIPES
from distill.build import load_instructor
from distill.cost.alive import Alive
from distill.cost.rehearsal import CPU, Rehearsal, drop_values
from distill.recipe import Recipe
from instil.base.config import load_recipe
from instil.base.runs.monitor import note

CHECKPOINTING, LORA = "train.checkpointing=true", "fake.lora={rank: 64}"
ON_CPU, LORA_STUDENT = "train.averages_on=cpu", "student.lora={rank: 64}"
SCHEMES = {
    "full copies": [],
    "checkpointing": [CHECKPOINTING],
    "LoRA fake, checkpointing": [CHECKPOINTING, LORA],
    "the same, averages on the CPU": [CHECKPOINTING, LORA, ON_CPU],
    "the same, LoRA student": [CHECKPOINTING, LORA, ON_CPU, LORA_STUDENT],
}


def authors(recipe: Recipe, images: int) -> int:
    """Bytes of the authors' scheme when most are alive, in its second update."""
    instructor = load_instructor(recipe, CPU, weights=False)
    base = instructor.denoiser.base()
    loop = AuthorsLoop(base, images, prior=instructor.prior)
    mode, known = FakeTensorMode(allow_non_fake_inputs=True), dict[Tensor, Any]()
    modules = (base, loop.fake, loop.student, loop.average)
    for module in modules:
        drop_values(module, mode, known)
    for group in (*loop.fake_adam.param_groups, *loop.student_adam.param_groups):
        group["params"] = [known[parameter] for parameter in group["params"]]
    with mode, Alive() as alive:
        for module in modules:
            alive.name("weights", [*module.parameters(), *module.buffers()])
        loop.update()
        loop.update()
    return alive.most.total()


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Count both, and each scheme of ours."""
    recipe = load_recipe(Recipe, arguments.recipe, [], RECIPES)
    note("the authors' scheme")
    theirs = authors(recipe, arguments.images)
    facts: dict[str, Any] = {"authors": theirs}
    rows = [{"scheme": "the authors'", "GiB": f"{theirs / 2**30:.1f}", "ratio": "1.00"}]
    for name, changes in SCHEMES.items():
        note(name)
        changed = load_recipe(Recipe, arguments.recipe, changes, RECIPES)
        ours = sum(Rehearsal(changed).update(arguments.images, first=True).values())
        facts[name] = {"changes": changes, "bytes": ours, "ratio": ours / theirs}
        rows.append({"scheme": name, "GiB": f"{ours / 2**30:.1f}", "ratio": f"{ours / theirs:.2f}"})
    return rows, facts


if __name__ == "__main__":
    options: dict[str, dict[str, Any]] = {
        "--recipe": {"default": "sdxl", "help": "of an instructor's size [%(default)s]"},
        "--images": {"type": int, "default": 1, "help": "of a micro-batch [%(default)s]"},
    }
    sys.exit(command(run, "Bytes of an update when most are alive, computed", options))
