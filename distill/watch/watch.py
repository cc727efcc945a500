"""What is seen of a run: distances and pictures on the way, report, export and table at its end."""

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from distill.cost.plan import forwards_per_update
from distill.recipe import Generator, Recipe
from distill.trainer import State
from distill.watch.best import Best
from distill.watch.curves import run_curves
from distill.watch.monitors import fresh_samples, gauge, panels, signs
from eval.quality.clip import Clip
from eval.quality.images import Sampler, generate, instructor_sampler, student_sampler
from eval.quality.yardstick import QUICK_SEEDS, Yardstick
from instil.base.data import to_uint8
from instil.base.processes import on_main
from instil.base.runs.monitor import note
from instil.base.runs.pictures import save_picture, sheet
from instil.base.runs.report import environment, peak_memory_bytes, show, write_json
from instil.base.runs.run import Run
from instructors.load import Instructor
from students.export import export
from students.student import Student

COLUMNS, ROWS = 10, 8  # of each half of a picture


class Watch:
    """What is seen of a run: quick distances, pictures, the final report.

    Every process has one and calls it at the same steps: they share the work; the first one writes.
    """

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
        self.instructor_pixels = self._pixels(self.instructor_sampler)
        records = on_main(this.monitor.records)  # of a run that is resumed
        self.seen = {(record["step"], key) for record in records for key in record}
        kept = this.folder / "best"  # not there before a run is asked to be patient
        followed = records if recipe.evaluation.patience and kept.is_dir() else ()
        self.best = Best(kept, followed)

    def look(self, step: int) -> None:
        """Measure and draw when it is time to, except what was done before a resume."""
        every, last = self.recipe.evaluation.every, step == self.recipe.train.steps
        measures = every and (step % every == 0 or last) and (step, "fd") not in self.seen
        if self.yardstick and measures:
            distances = self._quick(self.yardstick)
            if self.recipe.evaluation.patience:
                averages = {each.name: each.module for each in self.state.averages}
                self.best.offer(step, distances, averages)
            self.run.monitor.write({"step": step, "fd": distances})  # last: now it is done
        draws = step % self.recipe.pictures_every == 0 or last
        if draws and (step, "gauges") not in self.seen:  # likewise the last that is written
            pixels = self._pixels(self._sampler(self.state.averages[0].on(self.device)))
            self._picture(pixels, self.run.folder / "samples" / f"step-{step:08d}.png")
            on_main(lambda: self._monitor(step, pixels))

    def stalled(self, step: int) -> bool:
        """Whether this step was measured and the last measurements brought nothing new."""
        evaluation = self.recipe.evaluation
        if not (evaluation.extractor and evaluation.every and evaluation.patience):
            return False
        return step % evaluation.every == 0 and self.best.stale >= evaluation.patience

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
        if recipe.evaluation.clip:
            for name, each in (("instructor", self.instructor_sampler), ("student", sampler)):
                report[name]["clip"] = self._clip_score(each)
        pixels = self._pixels(sampler)
        self._picture(pixels, folder / "samples" / "final.png")
        if self.start is not None:
            before = self._pixels(self._sampler(self.start))
            self._picture(pixels, folder / "samples" / "before-after.png", before)
        return on_main(lambda: self._write(report, student))

    def _write(self, report: dict[str, Any], student: Student) -> dict[str, Any]:
        """Leave the report, its curves and the student in the run's folder."""
        folder = self.run.folder
        write_json(folder / "report.json", report)
        run_curves(self.run.monitor.records(), report, folder / "curves.png")
        export(student, folder / "student", self._card(report), self.instructor.card.folder)
        show_report(report)
        note(f"student: {folder / 'student'}   pictures: {folder / 'samples'}")
        return report

    def _clip_score(self, sampler: Sampler) -> float:
        """Mean CLIP score of images of the prompts in turn."""
        count, prompts = self.recipe.evaluation.quick_samples, self.prior.prompts
        batch = self.recipe.evaluation.batch
        pixels = generate(sampler, 0, count, self.device, batch)
        asked = [prompts[k % len(prompts)] for k in range(count)]
        clip: Any = self.clip  # the first process has it
        return on_main(lambda: clip(pixels, asked).mean().item())

    def _choose(self) -> tuple[str, Student]:
        """The average with the least quick distance, and its name; the longest if none is known."""
        averages = {each.name: each for each in self.state.averages}
        name = list(averages)[-1]
        if self.yardstick and self.best.name:
            name = self.best.name
            self.best.restore(averages[name].module)
        elif self.yardstick:
            distances = self._quick(self.yardstick)
            name = min(distances, key=lambda each: distances[each])
        return name, averages[name].on(self.device)

    def _chosen_step(self) -> int:
        return self.best.step if self.best.name else self.state.step

    def _quick(self, yardstick: Yardstick) -> dict[str, float]:
        return {
            each.name: yardstick.quick(self._sampler(each.on(self.device)))
            for each in self.state.averages
        }

    def _sampler(self, student: Student) -> Sampler:
        return student_sampler(student, self.prior, self.codec)

    def _pixels(self, sampler: Sampler) -> torch.Tensor:
        batch = min(COLUMNS * ROWS, self.recipe.evaluation.batch)
        return generate(sampler, QUICK_SEEDS, COLUMNS * ROWS, self.device, batch)

    def _picture(self, pixels: torch.Tensor, path: Path, left: torch.Tensor | None = None) -> None:
        """The instructor's images, or others, on the left; the student's, of the same seeds."""
        left = self.instructor_pixels if left is None else left
        sheets = [sheet(each, COLUMNS) for each in (left, pixels)]
        on_main(lambda: save_picture(sheets, path, self._zoom()))

    def _zoom(self) -> int:
        return max(1, 32 // self.codec.image_shape(self.instructor.denoiser.shape)[-1])

    def _monitor(self, step: int, pixels: torch.Tensor) -> None:
        """Compare fake and instructor on fresh samples, draw both, and say what looks wrong."""
        state, denoiser = self.state, self.instructor.denoiser
        batch = min(64, self.recipe.evaluation.batch)
        samples, condition = fresh_samples(state.student, self.prior, 64, batch, self.device)
        gauges = gauge(samples, condition, denoiser, state.fake, batch)
        few = slice(min(COLUMNS, batch))
        drawn = panels(samples[few], condition.rows(few), denoiser, state.fake)
        sheets = [sheet(to_uint8(self.codec.decode(each)).cpu(), COLUMNS) for each in drawn]
        save_picture(sheets, self.run.folder / "denoised" / f"step-{step:08d}.png", self._zoom())
        records = self.run.monitor.records()
        distances = [record["fd"] for record in records if "fd" in record]
        found = signs(pixels, self.instructor_pixels, distances, gauges) if step else []
        self.run.monitor.write({"step": step, "gauges": gauges.record(), "signs": found})
        for sign in found:
            note(f"step {step}: {sign}")

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
            if report["floor"] is not None:
                matched = f"{found['fd_matched']['mean']:.3f}" if "fd_matched" in found else "-"
                row[f"at n={report['floor_n']}"] = matched
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
