"""One distillation, from recipe to table: build, follow the loop, measure, export."""

import copy
import time
from typing import Any

import yaml

from distill.build import build, prepared
from distill.cost.plan import within
from distill.recipe import Generator, Recipe
from distill.trainer import micro_batch, train
from distill.watch.watch import Watch
from eval.quality.clip import Clip
from eval.quality.yardstick import Yardstick
from instil.base.processes import on_main
from instil.base.runs import run
from instil.base.runs.accelerator import accelerator_for, finish
from instil.base.runs.monitor import note


def session(recipe: Recipe, resume: str | None = None) -> dict[str, Any]:
    """Distil as the recipe says.

    Args:
        recipe: What to do.
        resume: As in `instil.base.runs.run.Run`.

    Returns:
        What is also written to `report.json`.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    accelerator = accelerator_for(recipe.train.precision, recipe.trackers, recipe.output)
    device, main = accelerator.device, accelerator.is_main_process
    recipe = recipe.replace(train=recipe.train.replace(precision=accelerator.mixed_precision))
    recipe = on_main(lambda: within(recipe, accelerator.num_processes))
    micro_batch(recipe, accelerator.num_processes)
    instructor = prepared(recipe, device)
    state = build(recipe, instructor, fresh=resume is None)
    start = None
    if isinstance(recipe.student, Generator):  # to be compared with in the end
        start = copy.deepcopy(state.student).eval()
    yardstick = None
    if recipe.evaluation.extractor:
        yardstick = Yardstick(recipe.evaluation, instructor, device)
    clip = Clip(recipe.evaluation.clip, device) if main and recipe.evaluation.clip else None
    facts = {"instructor_weights": instructor.card.sha256}
    train_steps, batch = recipe.train.steps, recipe.train.batch
    this = run.Run(recipe, train_steps, batch, state, facts, resume, accelerator)
    accelerator.init_trackers("instil", {"recipe": yaml.safe_dump(recipe.model_dump(mode="json"))})
    if main:
        note(
            f"{this.folder}: {recipe.instructor} -> {type(state.student).__name__}, "
            f"{accelerator.num_processes} process(es) on {device}, from step {state.step}"
        )
    watch = Watch(recipe, state, start, instructor, yardstick, clip, this)
    began = time.perf_counter()
    watch.look(state.step)  # of the start, or of a run that was killed before it had looked
    reports = train(state, instructor.denoiser, recipe, accelerator, instructor.prior)
    for report in () if watch.stalled(state.step) else this.follow(reports):
        with this.monitor.paused():
            watch.look(report.step)
        if watch.stalled(report.step):
            this.save()
            break
    seconds = time.perf_counter() - began
    found = watch.finish(seconds, accelerator)
    finish(accelerator)
    return found
