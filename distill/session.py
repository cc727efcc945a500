"""One distillation, from recipe to table: build, follow the loop, measure, export."""

import copy
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from distill.best import Best
from distill.fake_score import full_copy
from distill.plan import forwards_per_update
from distill.recipe import FewStep as FewStepRecipe
from distill.recipe import Generator, Recipe
from distill.recipe import OneStep as OneStepRecipe
from distill.trainer import State, micro_batch, train
from distill.warm_start import warm_start
from eval.clip import Clip
from eval.images import Sampler, generate, instructor_sampler, student_sampler
from eval.plots import run_curves
from eval.yardstick import QUICK_SEEDS, Yardstick
from instil import run
from instil.errors import InstilError
from instil.report import (
    environment,
    note,
    peak_memory_bytes,
    save_picture,
    sheet,
    show,
    write_json,
)
from instructors.load import Instructor
from instructors.prepare import prepare
from students.export import export
from students.few_step import FewStep
from students.load import check
from students.load import load as load_student
from students.one_step import OneStep
from students.student import Student

COLUMNS, ROWS = 10, 8  # of each half of a picture


def build(recipe: Recipe, instructor: Instructor, fresh: bool = True) -> State:
    """The state before the first update: the fake, and most students, are copies of the instructor.

    Args:
        recipe: What to build.
        instructor: What to copy.
        fresh: Whether the state starts a run, and so from `student.init` and `fake.init`; a
            resumed run does not need these files any more.

    Raises:
        InstilError: The recipe does not fit the instructor, or the weights named in it do not.
    """
    student = _student(recipe, instructor)
    fake = full_copy(instructor.denoiser)
    if recipe.fake.guidance != 1:
        try:
            fake.null(1)
        except ValueError as error:
            raise InstilError(f"fake.{error}") from None
    if fresh and isinstance(recipe.student, OneStepRecipe) and recipe.student.init:
        warm_start(student, recipe.student.init, "student")
    if fresh and recipe.fake.init:
        warm_start(fake, recipe.fake.init, "fake")
    return State.fresh(student, fake, recipe)


def prepared(recipe: Recipe, device: torch.device) -> Instructor:
    """The recipe's instructor.

    Raises:
        InstilError: The recipe does not fit it, or its samples cannot be seen.
    """
    found = prepare(recipe.instructor, recipe.conditioning, recipe.blend, recipe.side, device)
    if recipe.evaluation.clip and not found.prior.prompts:
        raise InstilError("evaluation.clip: this instructor has no prompts; leave it out")
    channels, *_ = found.codec.image_shape(found.denoiser.shape)
    if channels not in (1, 3):
        raise InstilError(
            f"{recipe.instructor}: samples of {channels} channels are no images, and there is no "
            "vae/ beside the network; expected a whole pipeline"
        )
    return found


def _student(recipe: Recipe, instructor: Instructor) -> Student:
    what = recipe.student
    if isinstance(what, OneStepRecipe):
        return OneStep(full_copy(instructor.denoiser), what.sigma)
    if isinstance(what, FewStepRecipe):
        return FewStep(full_copy(instructor.denoiser), what.sigmas).train()
    student = load_student(what).to(next(instructor.denoiser.parameters()).device)
    check(student, instructor.denoiser, what.weights)
    return student.requires_grad_(True).train()  # running statistics follow as they did


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
    instructor = prepared(recipe, device)
    state = build(recipe, instructor, fresh=resume is None)
    start = None
    if isinstance(recipe.student, Generator):  # to be compared with in the end
        start = copy.deepcopy(state.student).eval()
    yardstick = None
    if main and recipe.evaluation.extractor:
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
    watch = _Watch(recipe, state, start, instructor, yardstick, clip, this)
    began = time.perf_counter()
    if state.step == 0 and main:
        watch.look(0)
    reports = train(state, instructor.denoiser, recipe, accelerator, instructor.prior)
    for report in this.follow(reports):
        if main:
            with this.monitor.paused():
                watch.look(report.step)
        if watch.may_stop(report.step) and run.on_main(accelerator, lambda: watch.stalled):
            this.save()
            break
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
        start: Student | None,
        instructor: Instructor,
        yardstick: Yardstick | None,
        clip: Clip | None,
        this: run.Run,
    ) -> None:
        self.recipe, self.state, self.start, self.instructor = recipe, state, start, instructor
        self.yardstick, self.clip, self.run = yardstick, clip, this
        self.device = next(state.student.parameters()).device
        self.prior, self.codec = instructor.prior, instructor.codec
        self.instructor_sampler = instructor_sampler(
            instructor.denoiser, recipe.evaluation.instructor_steps, self.prior, self.codec
        )
        self.instructor_sheet = self._sheet(self.instructor_sampler)
        self.best = Best(this.folder / "best", this.monitor.records())

    def look(self, step: int) -> None:
        """Measure and draw when it is time to."""
        every, last = self.recipe.evaluation.every, step == self.recipe.train.steps
        if self.yardstick and every and (step % every == 0 or last):
            distances = self._quick(self.yardstick)
            self.run.monitor.write({"step": step, "fd": distances})
            if self.recipe.evaluation.patience:
                self.best.offer(step, distances, self._averages())
        if step % self.recipe.pictures_every == 0 or last:
            best = self.state.averages[0].module
            self._picture(best, self.run.folder / "samples" / f"step-{step:08d}.png")

    def may_stop(self, step: int) -> bool:
        """Whether the run may have stalled at this step; the same on every process."""
        evaluation = self.recipe.evaluation
        measured = bool(evaluation.extractor and evaluation.every and evaluation.patience)
        return measured and step % (evaluation.every or 1) == 0

    @property
    def stalled(self) -> bool:
        """Whether the last measurements brought nothing new; known to the first process."""
        return self.best.stale >= (self.recipe.evaluation.patience or 0)

    def finish(self, seconds: float, accelerator: Accelerator) -> dict[str, Any]:
        """Choose an average, measure it on fresh seeds, export it, and say so in a table."""
        recipe, folder, yardstick = self.recipe, self.run.folder, self.yardstick
        chosen, student = self._choose()
        sampler = self._sampler(student)
        evaluations = self.instructor.denoiser.evaluations
        report: dict[str, Any] = {
            "instructor": {"nfe": (2 * recipe.evaluation.instructor_steps - 1) * evaluations},
            "student": {"nfe": student.nfe, "average": chosen, "step": self._chosen_step()},
            "fd_name": yardstick.name if yardstick else None,
            "protocol": yardstick.describe() if yardstick else "nothing measured: no extractor",
            "seconds": round(seconds, 1),
            "forwards_per_update": forwards_per_update(recipe, student.nfe, evaluations),
            "processes": accelerator.num_processes,
            "peak_memory_bytes": peak_memory_bytes(),
            "environment": environment(),
        }
        if yardstick:
            report["instructor"] |= yardstick.instructor_figures()
            report["student"] |= yardstick.score(sampler)
            report["ratio"] = report["student"]["fd"]["mean"] / report["instructor"]["fd"]["mean"]
            report |= yardstick.floor()
            samplers = {"instructor": self.instructor_sampler, "student": sampler}
            if self.start is not None:
                samplers["start"] = self._sampler(self.start)
                report["start"] = {"nfe": self.start.nfe} | yardstick.score(samplers["start"])
            for name, each in samplers.items():
                report[name]["images_per_second"] = round(yardstick.speed(each), 1)
        if self.clip:
            for name, each in (("instructor", self.instructor_sampler), ("student", sampler)):
                report[name]["clip"] = self._clip_score(self.clip, each)
        write_json(folder / "report.json", report)
        self._picture(student, folder / "samples" / "final.png")
        if self.start is not None:
            sheets = [self._sheet(self._sampler(each)) for each in (self.start, student)]
            zoom = max(1, 32 // student.shape[-1])
            save_picture(sheets, folder / "samples" / "before-after.png", zoom)
        run_curves(self.run.monitor.records(), report, folder / "curves.png")
        export(student, folder / "student", self._card(report), self.instructor.card.folder)
        show_report(report)
        note(f"student: {folder / 'student'}   pictures: {folder / 'samples'}")
        return report

    def _clip_score(self, clip: Clip, sampler: Sampler) -> float:
        """Mean CLIP score of images of the prompts in turn."""
        count, prompts = self.recipe.evaluation.quick_samples, self.prior.prompts
        batch = self.recipe.evaluation.batch
        pixels = generate(sampler, 0, count, self.device, batch)
        return clip(pixels, [prompts[k % len(prompts)] for k in range(count)]).mean().item()

    def _choose(self) -> tuple[str, Student]:
        """The average with the least quick distance, and its name; the longest if none is known."""
        averages = self._averages()
        if self.yardstick is None:
            return list(averages.items())[-1]
        if self.best.name:
            self.best.restore(averages[self.best.name])
            return self.best.name, averages[self.best.name]
        distances = self._quick(self.yardstick)
        best = min(distances, key=lambda name: distances[name])
        return best, averages[best]

    def _chosen_step(self) -> int:
        return self.best.step if self.best.name else self.state.step

    def _averages(self) -> dict[str, Any]:
        return {f"{a.halflife_images:g}": a.module for a in self.state.averages}

    def _quick(self, yardstick: Yardstick) -> dict[str, float]:
        return {
            f"{average.halflife_images:g}": yardstick.quick(self._sampler(average.module))
            for average in self.state.averages
        }

    def _sampler(self, student: Student) -> Sampler:
        return student_sampler(student, self.prior, self.codec)

    def _sheet(self, sampler: Sampler) -> torch.Tensor:
        batch = min(COLUMNS * ROWS, self.recipe.evaluation.batch)
        pixels = generate(sampler, QUICK_SEEDS, COLUMNS * ROWS, self.device, batch)
        return sheet(pixels, COLUMNS)

    def _picture(self, student: Any, path: Path) -> None:
        """Instructor on the left, student on the right, from the same seeds."""
        sheets = [self.instructor_sheet, self._sheet(self._sampler(student))]
        side = self.codec.image_shape(student.shape)[-1]
        save_picture(sheets, path, zoom=max(1, 32 // side))

    def _card(self, report: dict[str, Any]) -> dict[str, Any]:
        card = self.instructor.card
        figures = {"NFE": str(report["student"]["nfe"])}
        if report["fd_name"]:
            for name in (n for n in ("start", "student", "instructor") if n in report):
                fd = report[name]["fd"]
                figures[f"{report['fd_name']}, {name}"] = f"{fd['mean']:.3f} ± {fd['std']:.3f}"
            figures["protocol"] = report["protocol"]
        student = self.recipe.student
        start = {"start": student.weights} if isinstance(student, Generator) else {}
        return start | {
            "instructor": card.source,
            "licence": card.licence,
            "figures": figures,
            "recipe": yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False),
        }


def show_report(report: dict[str, Any]) -> None:
    """Print the final table."""
    name, rows = report["fd_name"], []
    for who in (who for who in ("instructor", "start", "student") if who in report):
        row = {"": who, "NFE": str(report[who]["nfe"])}
        if name:
            found = report[who]
            row[name] = f"{found['fd']['mean']:.3f} ± {found['fd']['std']:.3f}"
            if "fd_matched" in found:
                row[f"at n={report['floor_n']}"] = f"{found['fd_matched']['mean']:.3f}"
            for key in ("precision", "recall", "copies"):
                row[key] = f"{found[key]['mean']:.3f}" if key in found else "-"
            row["images/s"] = f"{found['images_per_second']:,.0f}"
        if "clip" in report[who]:
            row["CLIP score"] = f"{report[who]['clip']:.2f}"
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
