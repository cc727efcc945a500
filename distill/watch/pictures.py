"""Grids of images: the instructor's on the left, a student's of the same seeds on the right."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import QUICK_SEEDS
from eval.quality.images import Sampler, generate, instructor_sampler, student_sampler
from instil.base.data import to_uint8
from instil.base.processes import on_main
from instil.base.runs.pictures import save_picture, sheet
from instructors.instructor import Instructor
from students.student import Student

COLUMNS, ROWS = 10, 8  # of each half


class Pictures:
    """Draws images and saves them in a run's folder; all processes share the drawing.

    Args:
        instructor: The source of the images on the left, drawn once.
        evaluation: The instructor's sampling steps, the batch size, and the most images.
        folder: The run's folder.
        device: Where networks run.
    """

    def __init__(
        self, instructor: Instructor, evaluation: Evaluation, folder: Path, device: torch.device
    ) -> None:
        self.prior, self.codec = instructor.prior, instructor.codec
        self.folder, self.device, self.batch = folder, device, evaluation.batch
        self.zoom = max(1, 32 // self.codec.image_shape(instructor.denoiser.shape)[-1])
        self.instructor_sampler = instructor_sampler(
            instructor.denoiser, evaluation.instructor_steps, self.prior, self.codec
        )
        self.count = min(COLUMNS * ROWS, evaluation.quick_samples)

    @cached_property
    def instructor_images(self) -> Tensor:
        """The left half of a picture."""
        return self.draw(self.instructor_sampler)

    def sampler(self, student: Student) -> Sampler:
        """A student's images by seed."""
        return student_sampler(student, self.prior, self.codec)

    def draw(self, sampler: Sampler) -> Tensor:
        """The images of one half of a picture: (N, C, H, W) uint8, N up to ROWS * COLUMNS."""
        batch = min(self.count, self.batch)
        return generate(sampler, QUICK_SEEDS, self.count, self.device, batch)

    def save(self, name: str, right: Tensor, left: Tensor | None = None) -> None:
        """Write `samples/NAME.png`; the left half is the instructor's if None."""
        left = self.instructor_images if left is None else left
        on_main(lambda: self._write(f"samples/{name}.png", [left, right]))

    def save_denoised(self, name: str, panels: list[Tensor]) -> None:
        """Write `denoised/NAME.png` of panels in the instructor's space; first process only."""
        images = [to_uint8(self.codec.decode(panel)).cpu() for panel in panels]
        self._write(f"denoised/{name}.png", images)

    def _write(self, name: str, images: list[Tensor]) -> None:
        sheets = [sheet(part, COLUMNS) for part in images]
        save_picture(sheets, self.folder / name, self.zoom)
