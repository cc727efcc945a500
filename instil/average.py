"""Exponential moving averages of a module's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """The average of a module over its past, the one that is evaluated and shipped.

    Parameters are averaged, buffers are copied: running statistics are averages already.

    Args:
        source: Averaged; the average starts as a copy of it.
        halflife_images: After so many training images a weight's influence has halved; 0 follows
            the source exactly.
        rampup: The half-life is at most this fraction of the images seen so far.

    Source:
        Karras et al. 2022, arXiv 2206.00364, appendix F.
    """

    def __init__(self, source: M, halflife_images: float, rampup: float = 0.05) -> None:
        self.module: M = copy.deepcopy(source).eval().requires_grad_(False)
        self.halflife_images = halflife_images
        self.rampup = rampup

    @torch.no_grad()
    def update(self, source: M, images_seen: int, batch: int) -> None:
        """Move towards the source after an update on `batch` images, `images_seen` in all."""
        halflife = min(self.halflife_images, images_seen * self.rampup)
        weight = 1 - 0.5 ** (batch / halflife) if halflife > 0 else 1.0
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(source.parameters())
        torch._foreach_lerp_(mine, theirs, weight)
        for buffer, value in zip(self.module.buffers(), source.buffers(), strict=True):
            buffer.copy_(value)
