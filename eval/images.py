"""Generated images: a sampler and a range of seeds become uint8 pixels."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from instil.data import to_uint8
from instil.draws import Draws
from instructors.denoiser import Denoiser, class_labels
from instructors.sampler import heun
from students.student import Student

Sampler = Callable[[Draws], Tensor]


def student_sampler(student: Student) -> Sampler:
    """One sample per seed from a student; labels run through the classes, so they are balanced."""
    return lambda draws: student(student.prior(draws), class_labels(student.classes, draws.index))


def instructor_sampler(denoiser: Denoiser, steps: int) -> Sampler:
    """One sample per seed by Heun's method, from the noise and label the student would get."""
    return lambda draws: heun(
        denoiser,
        draws.normal("latent", denoiser.shape),
        steps,
        class_labels(denoiser.classes, draws.index),
    )


@torch.no_grad()
def batches(
    sampler: Sampler, start: int, count: int, device: torch.device | str = "cpu", batch: int = 250
) -> Iterator[Tensor]:
    """Images start, …, start + count - 1 as float (b, *shape); image k depends on k alone."""
    for first in range(start, start + count, batch):
        yield sampler(Draws.of_range(0, 0, first, min(batch, start + count - first), device))


def generate(
    sampler: Sampler, start: int, count: int, device: torch.device | str = "cpu", batch: int = 250
) -> Tensor:
    """The same as one uint8 tensor (count, C, H, W) on the CPU."""
    return torch.cat([to_uint8(x).cpu() for x in batches(sampler, start, count, device, batch)])
