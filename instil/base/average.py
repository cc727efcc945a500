"""Exponential moving averages of a module's weights."""

import copy
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """The average of a module over its past, the one that is evaluated and shipped.

    Parameters are averaged, buffers are copied: running statistics are averages already. What
    `state_dict` leaves out is constant and shared with the source, on its device.

    Args:
        source: Module to average; the average starts as a copy of it.
        halflife_images: Number of training images after which the influence of a weight has halved;
            0 follows the source exactly.
        rampup: Largest half-life, as a fraction of the images seen so far.
        device: Device of the average; None for the source's. On the CPU it takes no memory of an
            accelerator, and each update copies the weights there.

    Source:
        Karras et al. 2022, arXiv 2206.00364, appendix F.
    """

    def __init__(
        self,
        source: M,
        halflife_images: float,
        rampup: float = 0.05,
        device: torch.device | str | None = None,
    ) -> None:
        saved = source.state_dict(keep_vars=True)
        kept = {id(tensor) for tensor in saved.values()}
        tensors = chain(source.parameters(), source.buffers())
        shared = {id(tensor): tensor for tensor in tensors if id(tensor) not in kept}
        moved = device is not None and torch.device(device) != next(source.parameters()).device
        self.module: M = copy.deepcopy(source, {} if moved else shared)
        self.module.eval().requires_grad_(False)
        if moved:
            self.module.to(device)
        self._averaged = [name for name, _ in source.named_parameters() if name in saved]
        self._copied = [name for name, _ in source.named_buffers() if name in saved]
        self.halflife_images = halflife_images
        self.rampup = rampup

    @property
    def name(self) -> str:
        """The half-life as text, for the names of files and columns."""
        return f"{self.halflife_images:g}"

    @torch.no_grad()
    def update(self, source: M, images_seen: int, batch: int) -> None:
        """Move towards the source after an update on `batch` images, `images_seen` in all."""
        halflife = min(self.halflife_images, images_seen * self.rampup)
        weight = 1 - 0.5 ** (batch / halflife) if halflife > 0 else 1.0
        mine, theirs = dict(self.module.named_parameters()), dict(source.named_parameters())
        own: list[Tensor] = [mine[name] for name in self._averaged]
        new = [theirs[name].to(mine[name].device) for name in self._averaged]
        torch._foreach_lerp_(own, new, weight)
        buffers, values = dict(self.module.named_buffers()), dict(source.named_buffers())
        for name in self._copied:
            buffers[name].copy_(values[name])

    def on(self, device: torch.device) -> M:
        """The average, or a copy of it, on another device."""
        here = next(self.module.parameters()).device
        return self.module if here == device else copy.deepcopy(self.module).to(device)
