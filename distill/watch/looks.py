"""Looks at a run under way: quick distances, pictures and gauges, each at its own steps."""

from dataclasses import dataclass

from torch import Tensor

from distill.recipe import Recipe
from distill.trainer import State
from distill.watch.best import Best
from distill.watch.monitors import fresh_samples, gauge, panels, warnings_of
from distill.watch.pictures import COLUMNS, Pictures
from eval.quality.evaluator import Evaluator
from instil.base.average import Average
from instil.base.processes import on_main
from instil.base.runs.monitor import note
from instil.base.runs.run import Run
from instructors.instructor import Instructor
from students.student import Student

SAMPLES = 64  # that gauges are read from, or as many as a quick measurement has


@dataclass(frozen=True)
class Choice:
    """The student that is shipped.

    Attributes:
        average: The half-life of its average, in images.
        step: Updates done when it was kept.
        student: The average on the run's device.
    """

    average: str
    step: int
    student: Student


class Looks:
    """Measures and draws a run at the steps its recipe names, and remembers its best student.

    Every process calls it at the same steps; they share the work, and the first one writes.

    Args:
        recipe: The run's recipe.
        run: Its folder and records.
        state: Read, never changed.
        instructor: What the student is compared with.
        evaluator: Measures quick distances; None measures none.
        pictures: Draws the grids.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        state: State,
        instructor: Instructor,
        evaluator: Evaluator | None,
        pictures: Pictures,
    ) -> None:
        self.recipe, self.run, self.state, self.instructor = recipe, run, state, instructor
        self.evaluator, self.pictures = evaluator, pictures
        records = on_main(run.monitor.records)  # from before a resume
        self.done = {(record["step"], key) for record in records for key in record}
        folder = run.folder / "best"  # appears when a run is first asked to be patient
        followed = records if recipe.evaluation.patience and folder.is_dir() else ()
        self.best = Best(folder, followed)

    def look(self, step: int) -> None:
        """Measure and draw if it is time to; what was done before a resume is not repeated."""
        every, last = self.recipe.evaluation.every, step == self.recipe.train.steps
        if every and (step % every == 0 or last) and (step, "fd") not in self.done:
            self._measure(step)
        drawn = self.recipe.pictures_every
        if drawn and (step % drawn == 0 or last) and (step, "gauges") not in self.done:
            self._draw(step)

    def stalled(self, step: int) -> bool:
        """Whether this step was measured and the last `evaluation.patience` measurements failed."""
        evaluation = self.recipe.evaluation
        if self.evaluator is None or not evaluation.every or not evaluation.patience:
            return False
        return step % evaluation.every == 0 and self.best.stale >= evaluation.patience

    def choose(self) -> Choice:
        """The best student so far: the one kept, else the average with the least quick distance.

        Without an evaluator it is the average with the longest half-life. Its weights follow the
        run, unless they were kept earlier.
        """
        averages = {average.name: average for average in self.state.averages}
        name, step, device = list(averages)[-1], self.state.step, self.pictures.device
        if self.evaluator is None:
            return Choice(name, step, averages[name].on(device))
        if self.best.name:
            name, step = self.best.name, self.best.step
            kept = Average(averages[name].module, 0)  # a copy that shares what is frozen
            self.best.restore(kept.module)
            return Choice(name, step, kept.on(device))
        distances = self._distances(self.evaluator)
        name = min(distances, key=lambda average: distances[average])
        return Choice(name, step, averages[name].on(device))

    def _measure(self, step: int) -> None:
        """Record the quick distance of every average; keep the best if the recipe is patient."""
        if self.evaluator is None:
            return
        distances = self._distances(self.evaluator)
        if self.recipe.evaluation.patience:
            averages = {average.name: average.module for average in self.state.averages}
            self.best.offer(step, distances, averages)
        # Written last: a record says that all of it was done.
        self.run.monitor.write({"step": step, "fd": distances})

    def _distances(self, evaluator: Evaluator) -> dict[str, float]:
        return {
            average.name: evaluator.quick(self.pictures.sampler(average.on(self.pictures.device)))
            for average in self.state.averages
        }

    def _draw(self, step: int) -> None:
        """Draw the first average's images, then what both networks make of fresh samples."""
        pictures = self.pictures
        images = pictures.draw(pictures.sampler(self.state.averages[0].on(pictures.device)))
        pictures.save(f"step-{step:08d}", images)
        on_main(lambda: self._gauge(step, images))

    def _gauge(self, step: int, images: Tensor) -> None:
        """Compare fake score and instructor on fresh samples; record, draw and warn."""
        state, denoiser, pictures = self.state, self.instructor.denoiser, self.pictures
        count = min(SAMPLES, self.recipe.evaluation.quick_samples)
        batch = min(count, pictures.batch)
        samples, condition = fresh_samples(
            state.student, pictures.prior, count, batch, pictures.device
        )
        gauges = gauge(samples, condition, denoiser, state.fake, batch)
        few = slice(min(COLUMNS, batch))
        drawn = panels(samples[few], condition.rows(few), denoiser, state.fake)
        pictures.save_denoised(f"step-{step:08d}", drawn)
        distances = [record["fd"] for record in self.run.monitor.records() if "fd" in record]
        warnings = (
            warnings_of(images, pictures.instructor_images, distances, gauges) if step else []
        )
        self.run.monitor.write({"step": step, "gauges": gauges.record(), "signs": warnings})
        for warning in warnings:
            note(f"step {step}: {warning}")
