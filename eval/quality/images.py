"""Generated images: a sampler and a range of seeds become uint8 pixels."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from eval.quality.sources import Source
from instil.base.data import to_uint8
from instil.base.draws import Draws
from instil.base.processes import shared
from instructors.codec import Codec
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Denoiser
from instructors.sampler import heun
from students.student import Student

Sampler = Callable[[Draws], Tensor]


def student_sampler(
    student: Student, prior: Prior | None = None, codec: Codec | None = None
) -> Sampler:
    """One image per seed from a student.

    Args:
        student: The model.
        prior: Its conditions are run through in turn, so they are balanced; None for class labels.
        codec: Makes images of its samples; None where they are images.
    """
    prior, codec = prior or labels(student.classes), codec or Codec()
    return lambda draws: codec.decode(
        student(student.prior(draws), prior.to(draws.index.device).at(draws.index))
    )


def instructor_sampler(
    denoiser: Denoiser, steps: int, prior: Prior | None = None, codec: Codec | None = None
) -> Sampler:
    """One image per seed by Heun's method, from the noise and condition the student would get."""
    prior, codec = prior or labels(denoiser.classes), codec or Codec()
    return lambda draws: codec.decode(
        heun(
            denoiser,
            draws.normal("latent", denoiser.shape),
            steps,
            prior.to(draws.index.device).at(draws.index),
        )
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
    """The same as one uint8 tensor (count, C, H, W) on the CPU; processes share the batches."""
    end = start + count

    def make(first: int) -> Tensor:
        (images,) = batches(sampler, first, min(batch, end - first), device, batch)
        return to_uint8(images).cpu()

    return torch.cat(shared(range(start, end, batch), make))


def sampled(
    sampler: Sampler,
    name: str,
    start: int,
    count: int,
    device: torch.device | str = "cpu",
    batch: int = 250,
) -> Source:
    """A source of the same images, which are made as they are measured."""

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        for part in parts:
            (images,) = batches(sampler, start + part.start, len(part), device, len(part))
            yield to_uint8(images).cpu()

    return Source(name, count, read, batch=batch)
