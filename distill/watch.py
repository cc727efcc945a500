"""What is seen of a run: distances and pictures on the way, report, export and table at its end."""

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from distill.best import Best
from distill.plan import forwards_per_update
from distill.recipe import Generator, Recipe
from distill.trainer import State
from eval.clip import Clip
from eval.images import Sampler, generate, instructor_sampler, student_sampler
from eval.plots import run_curves
from eval.yardstick import QUICK_SEEDS, Yardstick
from instil.report import (
    environment,
    note,
    peak_memory_bytes,
    save_picture,
    sheet,
    show,
    write_json,
)
from instil.run import Run
from instructors.load import Instructor
from students.export import export
from students.student import Student

COLUMNS, ROWS = 10, 8  # of each half of a picture


class Watch:
    """What is seen of a run, on the first process: quick distances, pictures, the final report."""

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        start: Student | None,
        instructor: Instructor,
        yardstick: Yardstick | None,
        clip: Clip | None,
        this: Run,
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
            before = self._sheet(self._sampler(self.start))
            self._picture(student, folder / "samples" / "before-after.png", before)
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

    def _picture(self, student: Any, path: Path, left: torch.Tensor | None = None) -> None:
        """Instructor, or another sheet, on the left; student on the right, from the same seeds."""
        left = self.instructor_sheet if left is None else left
        sheets = [left, self._sheet(self._sampler(student))]
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
