"""One distillation, from recipe to table: build, follow the loop, measure, export."""

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from distill.fake_score import full_copy
from distill.plan import forwards_per_update
from distill.recipe import Recipe
from distill.trainer import State, micro_batch, train
from distill.warm_start import warm_start
from eval.images import Sampler, generate, instructor_sampler, student_sampler
from eval.plots import run_curves
from eval.yardstick import QUICK_SEEDS, Yardstick
from instil import run
from instil.report import (
    environment,
    note,
    peak_memory_bytes,
    save_picture,
    sheet,
    show,
    write_json,
)
from instructors.load import Instructor, load
from students.export import export
from students.one_step import OneStep
from students.student import Student

COLUMNS, ROWS = 10, 8  # of each half of a picture


def build(recipe: Recipe, instructor: Instructor, fresh: bool = True) -> State:
    """The state before the first update: student and fake are copies of the instructor.

    Args:
        recipe: What to build.
        instructor: What to copy.
        fresh: Whether the state starts a run, and so from `student.init` and `fake.init`; a
            resumed run does not need these files any more.

    Raises:
        InstilError: The recipe does not fit the instructor, or the weights named in it do not.
    """
    student = OneStep(full_copy(instructor.denoiser), recipe.student.sigma)
    fake = full_copy(instructor.denoiser)
    if fresh and recipe.student.init:
        warm_start(student, recipe.student.init, "student")
    if fresh and recipe.fake.init:
        warm_start(fake, recipe.fake.init, "fake")
    return State.fresh(student, fake, recipe)


def session(recipe: Recipe, resume: str | None = None) -> dict[str, Any]:
    """Distil as the recipe says.

    Args:
        recipe: What to do.
        resume: As in `instil.run.Run`.

    Returns:
        What is also written to `report.json`.

    Raises:
        InstilError: Bad input, before any long work.
        FloatingPointError: Gradients are no longer finite.
    """
    accelerator = run.accelerator_for(recipe.train.precision, recipe.trackers, recipe.output)
    device, main = accelerator.device, accelerator.is_main_process
    micro_batch(recipe, accelerator.num_processes)
    resolved = recipe.train.replace(precision=accelerator.mixed_precision)
    recipe = recipe.replace(train=resolved.model_dump(mode="json"))
    instructor = load(recipe.instructor)
    instructor.denoiser.to(device)
    state = build(recipe, instructor, fresh=resume is None)
    yardstick = None
    if main and recipe.evaluation.extractor:
        yardstick = Yardstick(recipe.evaluation, instructor, device)
    facts = {"instructor_weights": instructor.card.sha256}
    train_steps, batch = recipe.train.steps, recipe.train.batch
    this = run.Run(recipe, train_steps, batch, state, facts, resume, accelerator)
    accelerator.init_trackers("instil", {"recipe": yaml.safe_dump(recipe.model_dump(mode="json"))})
    if main:
        note(
            f"{this.folder}: {recipe.instructor} -> one step, {accelerator.num_processes} "
            f"process(es) on {device}, from step {state.step}"
        )
    watch = _Watch(recipe, state, instructor, yardstick, this)
    began = time.perf_counter()
    if state.step == 0 and main:
        watch.look(0)
    for report in this.follow(train(state, instructor.denoiser, recipe, accelerator)):
        if main:
            with this.monitor.paused():
                watch.look(report.step)
    seconds = time.perf_counter() - began
    found = run.on_main(accelerator, lambda: watch.finish(seconds, accelerator))
    run.finish(accelerator)
    return found


class _Watch:
    """What is seen of a run, on the first process: quick distances, pictures, the final report."""

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        instructor: Instructor,
        yardstick: Yardstick | None,
        this: run.Run,
    ) -> None:
        self.recipe, self.state, self.instructor = recipe, state, instructor
        self.yardstick, self.run = yardstick, this
        self.device = next(state.student.parameters()).device
        steps = recipe.evaluation.instructor_steps
        self.instructor_sampler = instructor_sampler(instructor.denoiser, steps)
        self.instructor_sheet = self._sheet(self.instructor_sampler)

    def look(self, step: int) -> None:
        """Measure and draw when it is time to."""
        every, last = self.recipe.evaluation.every, step == self.recipe.train.steps
        if self.yardstick and every and (step % every == 0 or last):
            self.run.monitor.write({"step": step, "fd": self._quick(self.yardstick)})
        if step % self.recipe.pictures_every == 0 or last:
            best = self.state.averages[0].module
            self._picture(best, self.run.folder / "samples" / f"step-{step:08d}.png")

    def finish(self, seconds: float, accelerator: Accelerator) -> dict[str, Any]:
        """Choose an average, measure it on fresh seeds, export it, and say so in a table."""
        recipe, folder, yardstick = self.recipe, self.run.folder, self.yardstick
        chosen, student = self._choose()
        sampler = student_sampler(student)
        report: dict[str, Any] = {
            "instructor": {"nfe": 2 * recipe.evaluation.instructor_steps - 1},
            "student": {"nfe": student.nfe, "average": chosen},
            "fd_name": yardstick.name if yardstick else None,
            "protocol": yardstick.describe() if yardstick else "nothing measured: no extractor",
            "seconds": round(seconds, 1),
            "forwards_per_update": forwards_per_update(recipe),
            "processes": accelerator.num_processes,
            "peak_memory_bytes": peak_memory_bytes(),
            "environment": environment(),
        }
        if yardstick:
            report["instructor"] |= yardstick.instructor_figures()
            report["student"] |= yardstick.score(sampler)
            report["ratio"] = report["student"]["fd"]["mean"] / report["instructor"]["fd"]["mean"]
            report |= yardstick.floor()
            for name, each in (("instructor", self.instructor_sampler), ("student", sampler)):
                report[name]["images_per_second"] = round(yardstick.speed(each), 1)
        write_json(folder / "report.json", report)
        self._picture(student, folder / "samples" / "final.png")
        run_curves(self.run.monitor.records(), report, folder / "curves.png")
        export(student, folder / "student", self._card(report))
        show_report(report)
        note(f"student: {folder / 'student'}   pictures: {folder / 'samples'}")
        return report

    def _choose(self) -> tuple[str, Student]:
        """The average with the least quick distance, and its name; the longest if none is known."""
        averages: dict[str, Any] = {f"{a.halflife_images:g}": a.module for a in self.state.averages}
        if self.yardstick is None:
            return list(averages.items())[-1]
        distances = self._quick(self.yardstick)
        best = min(distances, key=lambda name: distances[name])
        return best, averages[best]

    def _quick(self, yardstick: Yardstick) -> dict[str, float]:
        return {
            f"{average.halflife_images:g}": yardstick.quick(student_sampler(average.module))
            for average in self.state.averages
        }

    def _sheet(self, sampler: Sampler) -> torch.Tensor:
        pixels = generate(sampler, QUICK_SEEDS, COLUMNS * ROWS, self.device, COLUMNS * ROWS)
        return sheet(pixels, COLUMNS)

    def _picture(self, student: Any, path: Path) -> None:
        """Instructor on the left, student on the right, from the same seeds."""
        sheets = [self.instructor_sheet, self._sheet(student_sampler(student))]
        save_picture(sheets, path, zoom=max(1, 32 // student.shape[-1]))

    def _card(self, report: dict[str, Any]) -> dict[str, Any]:
        card = self.instructor.card
        figures = {"NFE": str(report["student"]["nfe"])}
        if report["fd_name"]:
            for name in ("student", "instructor"):
                fd = report[name]["fd"]
                figures[f"{report['fd_name']}, {name}"] = f"{fd['mean']:.3f} ± {fd['std']:.3f}"
            figures["protocol"] = report["protocol"]
        return {
            "instructor": card.source,
            "licence": card.licence,
            "figures": figures,
            "recipe": yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False),
        }


def show_report(report: dict[str, Any]) -> None:
    """Print the final table."""
    name, rows = report["fd_name"], []
    for who in ("instructor", "student"):
        row = {"": who, "NFE": str(report[who]["nfe"])}
        if name:
            found = report[who]
            row[name] = f"{found['fd']['mean']:.3f} ± {found['fd']['std']:.3f}"
            if "fd_matched" in found:
                row[f"at n={report['floor_n']}"] = f"{found['fd_matched']['mean']:.3f}"
            for key in ("precision", "recall", "copies"):
                row[key] = f"{found[key]['mean']:.3f}" if key in found else "-"
            row["images/s"] = f"{found['images_per_second']:,.0f}"
        rows.append(row)
    if name and report["floor"] is not None:
        floor = dict.fromkeys(rows[0], "") | {"": "floor: held-out images"}
        rows.append(floor | {f"at n={report['floor_n']}": f"{report['floor']:.3f}"})
    show(f"\n{report['protocol']}", rows)
    facts = [
        f"{report['seconds']:.0f} s",
        f"{report['forwards_per_update']} forwards per update",
        f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB",
    ]
    if name:
        facts.insert(0, f"student / instructor {report['ratio']:.2f}")
    print("  ·  ".join(facts))  # noqa: T201, the last line of the table
