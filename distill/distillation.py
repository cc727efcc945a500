"""One distillation, from recipe to exported student: a loop that can be driven from Python."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.build import build, load_instructor
from distill.cost.plan import fit_memory, forwards_per_update
from distill.cost.rehearsal import Rehearsal
from distill.recipe import FewStep, OneStep, Recipe
from distill.trainer import Report, micro_batch, train
from distill.watch.curves import run_curves
from distill.watch.looks import Choice, Looks
from distill.watch.pictures import Pictures
from distill.watch.report import add_figures, card_facts, show_report
from eval.quality.clip import Clip
from eval.quality.evaluator import Evaluator
from eval.quality.features import Extractor
from eval.quality.images import Sampler, generate
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.processes import on_main
from instil.base.runs.accelerator import accelerator_for, finish
from instil.base.runs.monitor import note
from instil.base.runs.report import environment, peak_memory_bytes, write_json
from instil.base.runs.run import Run, flatten
from instil.base.runs.trackers import start_trackers
from instructors.denoiser import Denoiser
from instructors.instructor import Instructor
from students.compatibility import check_saved
from students.export import export
from students.student import Student


class Distillation:
    """One run: going through it makes one update per turn, and measures and saves on the way.

        run = Distillation(recipe)
        for update in run:
            print(update.step)
        run.student.sample(seeds=range(16))

    A loop that is left early goes on where it stopped, with another loop or with `finish`.

    Args:
        recipe: What to do.
        resume: None for a new run, "" to continue the newest of its name, or the folder of a run
            or of a checkpoint.
        instructor: Used instead of what `recipe.instructor` names.
        student: Trained instead of what `recipe.student` describes; in the instructor's space.
        extractor: Measures instead of what `recipe.evaluation.extractor` names.

    Attributes:
        folder: The run's folder.
        instructor: What is distilled.
        state: Everything that is trained.
        report: What is also written to `report.json`; None until the run is finished.

    Raises:
        InstilError: Bad input, before any long work.
    """

    def __init__(
        self,
        recipe: Recipe,
        resume: str | None = None,
        *,
        instructor: Instructor | Denoiser | None = None,
        student: Student | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        accelerator = accelerator_for(recipe.train.precision, recipe.trackers, recipe.output)
        device, main = accelerator.device, accelerator.is_main_process
        recipe = recipe.replace(train=recipe.train.replace(precision=accelerator.mixed_precision))
        if recipe.train.memory:
            rehearsal = Rehearsal(recipe, instructor, student)
            recipe = on_main(lambda: fit_memory(recipe, accelerator.num_processes, rehearsal))
        micro_batch(recipe, accelerator.num_processes)
        self.recipe, self.accelerator = recipe, accelerator
        self.instructor = load_instructor(recipe, device, instructor=instructor)
        self.state = build(recipe, self.instructor, fresh=resume is None, student=student)
        copied = student is None and isinstance(recipe.student, OneStep | FewStep)
        self._start = None if copied else copy.deepcopy(self.state.student).eval()
        self._evaluator = None
        if extractor or recipe.evaluation.extractor:
            self._evaluator = Evaluator(recipe.evaluation, self.instructor, device, extractor)
        clip = recipe.evaluation.clip
        self._clip = Clip(clip, device) if main and clip else None
        facts = {"instructor_weights": self.instructor.card.sha256}
        steps, batch = recipe.train.steps, recipe.train.batch
        self._run = Run(recipe, steps, batch, self.state, facts, resume, accelerator)
        self.folder = self._run.folder
        shown = flatten(recipe.model_dump(mode="json"))
        start_trackers(accelerator, self.folder, shown, self.state.step)
        if main:
            note(
                f"{self.folder}: {recipe.instructor} -> {type(self.state.student).__name__}, "
                f"{accelerator.num_processes} process(es) on {device}, from step {self.state.step}"
            )
        self._pictures = Pictures(self.instructor, recipe.evaluation, self.folder, device)
        self._looks = Looks(
            recipe, self._run, self.state, self.instructor, self._evaluator, self._pictures
        )
        self.report: dict[str, Any] | None = None
        self._choice: Choice | None = None
        self._updates = self._train()

    def __iter__(self) -> Iterator[Report]:
        """The updates that are left; after the last one the run is measured and exported.

        Raises:
            FloatingPointError: Gradients are no longer finite.
        """
        return self._updates

    def finish(self) -> dict[str, Any]:
        """Make the updates that are left; returns the report.

        Signals stop it after a whole update.

        Raises:
            InstilError: The run was stopped by an error.
            Stopped: A signal came, and the run was saved.
        """
        with self._run.writing():
            for _ in self._updates:
                pass
        if self.report is None:
            raise InstilError(f"{self.folder}: was stopped by an error; go on with resume")
        return self.report

    @property
    def student(self) -> Student:
        """The best average of the student; its weights follow the run until that is finished."""
        return (self._choice or self._looks.choose()).student

    def export(self, folder: Path | str) -> None:
        """Write the best student with a model card, and load it again.

        Raises:
            InstilError: The student's network has no layout, or the folder draws other images.
        """
        choice = self._choice or self._looks.choose()
        report = self.report or self._facts(choice, 0.0)
        facts = card_facts(self.recipe, self.instructor.card, report)
        factory = getattr(self.recipe.student, "factory", None)
        factory = factory or self.recipe.instructor * own.is_name(self.recipe.instructor)

        def write() -> None:
            export(choice.student, Path(folder), facts, self.instructor.card.folder)
            check_saved(choice.student, Path(folder), self.instructor.prior, factory or None)

        on_main(write)

    def _train(self) -> Iterator[Report]:
        """Look, update, look, …, and finish."""
        step, seconds, began = self.state.step, 0.0, time.perf_counter()
        self._looks.look(step)  # at the start, or at a step whose look a kill prevented
        reports = train(
            self.state,
            self.instructor.denoiser,
            self.recipe,
            self.accelerator,
            self.instructor.prior,
        )
        stalled = self._looks.stalled(step)
        for report in () if stalled else self._run.follow(reports):
            with self._run.monitor.paused():
                self._looks.look(report.step)
                if stalled := self._looks.stalled(report.step):
                    self._run.save()
                seconds += time.perf_counter() - began
                yield report
                began = time.perf_counter()
            if stalled:
                break
        self._finish(seconds)

    def _finish(self, seconds: float) -> None:
        """Choose an average, measure it on fresh seeds, export it, and say so in a table."""
        pictures, clip = self._pictures, self.recipe.evaluation.clip
        choice = self._looks.choose()
        samplers = {
            "instructor": pictures.instructor_sampler,
            "student": pictures.sampler(choice.student),
        }
        report = self._facts(choice, seconds)
        if self._start is not None:
            samplers["start"] = pictures.sampler(self._start)
            report["start"] = {"nfe": self._start.nfe}
        add_figures(report, samplers, self._evaluator, self._clip_score if clip else None)
        if self.recipe.pictures_every:
            images = pictures.draw(samplers["student"])
            pictures.save("final", images)
            if self._start is not None:
                pictures.save("before-after", images, left=pictures.draw(samplers["start"]))
        self._choice, self.report = choice, on_main(lambda: self._write(report))
        self.export(self.folder / "student")
        if self.accelerator.is_main_process:
            show_report(report)
            drawn = f"   pictures: {self.folder / 'samples'}" if self.recipe.pictures_every else ""
            note(f"student: {self.folder / 'student'}{drawn}")
        finish(self.accelerator)

    def _facts(self, choice: Choice, seconds: float) -> dict[str, Any]:
        """The part of the report that takes no measuring."""
        recipe, evaluator = self.recipe, self._evaluator
        evaluations, nfe = self.instructor.denoiser.evaluations, choice.student.nfe
        return {
            "instructor": {"nfe": (2 * recipe.evaluation.instructor_steps - 1) * evaluations},
            "student": {"nfe": nfe, "average": choice.average, "step": choice.step},
            "fd_name": evaluator.name if evaluator else None,
            "protocol": evaluator.describe() if evaluator else "nothing measured: no extractor",
            "seconds": round(seconds, 1),
            "forwards_per_update": forwards_per_update(recipe, nfe, evaluations),
            "processes": self.accelerator.num_processes,
            "peak_memory_bytes": peak_memory_bytes(),
            "environment": environment(),
        }

    def _write(self, report: dict[str, Any]) -> dict[str, Any]:
        """Leave the report and its curves in the run's folder."""
        write_json(self.folder / "report.json", report)
        run_curves(self._run.monitor.records(), report, self.folder / "curves.png")
        return report

    def _clip_score(self, sampler: Sampler) -> float:
        """Mean CLIP score of images of the prompts in turn."""
        evaluation, prompts = self.recipe.evaluation, self.instructor.prior.prompts
        count, device = evaluation.quick_samples, self.accelerator.device
        images = generate(sampler, 0, count, device, evaluation.batch)
        given = [prompts[number % len(prompts)] for number in range(count)]
        clip: Any = self._clip  # the first process has it
        return on_main(lambda: clip(images, given).mean().item())
