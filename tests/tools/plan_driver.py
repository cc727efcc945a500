"""Prints what two updates take of a process's memory, and the plan of it.

Run by one process or several, with the folder of an instructor.
"""

from distill.build import build, load_instructor
from distill.cost.plan import memory
from distill.cost.rehearsal import Rehearsal
from distill.recipe import Recipe
from distill.trainer import train
from instil.base.config import validate
from instil.base.runs.accelerator import accelerator_for, finish
from tests.tools.allocated import allocated


def main(words: list[str]) -> None:
    (folder,) = words
    accelerator = accelerator_for("no", (), "runs")
    processes = accelerator.num_processes
    for accumulation in (1, 4):
        settings = {"batch": 8, "accumulation": accumulation, "averages": [100]}
        recipe = validate(Recipe, {"name": "x", "instructor": folder, "train": settings})

        def two_updates(recipe: Recipe = recipe) -> None:
            instructor = load_instructor(recipe, accelerator.device)
            state = build(recipe, instructor)
            reports = train(state, instructor.denoiser, recipe, accelerator, instructor.prior)
            next(reports)
            next(reports)

        truth = allocated(two_updates)
        if accelerator.is_main_process:
            plan = memory(recipe, processes, Rehearsal(recipe))
            rebuilt = plan["parts"]["gradients"] if processes > 1 else 0
            print(processes, accumulation, truth, plan["peak"], rebuilt)  # noqa: T201
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    finish(accelerator)
