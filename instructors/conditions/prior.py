"""What a student is asked for: conditions without data."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from instil.base.draws import Draws
from instructors.denoiser import UNCONDITIONAL, Condition


@dataclass(frozen=True)
class Prior:
    """A finite table of conditions and how often each is drawn; empty if unconditional.

    Attributes:
        table: Tensors with a leading axis N, one row per condition.
        shares: (N,) probabilities; None for equal ones.
        prompts: What the rows say, where they are text.
    """

    table: Condition = field(default_factory=Condition)
    shares: Tensor | None = None
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.table.values()))) if self.table else 0

    def at(self, numbers: Tensor) -> Condition:
        """The conditions `numbers` (B,) modulo their count, in turn: balanced."""
        return self.table.rows(numbers % len(self)) if self.table else UNCONDITIONAL

    def draw(self, draws: Draws) -> Condition:
        """A condition for each sample of `draws`."""
        if not self.table:
            return UNCONDITIONAL
        if self.shares is None:
            return self.table.rows(draws.integers("label", len(self)))
        uniform = draws.uniform("label")
        bounds = self.shares.to(uniform).cumsum(0)
        return self.table.rows(torch.searchsorted(bounds[:-1] / bounds[-1], uniform))

    def to(self, device: torch.device | str) -> "Prior":
        """The same on another device."""
        return Prior(self.table.to(device), self.shares, self.prompts)


def labels(classes: int, shares: Tensor | None = None) -> Prior:
    """The prior over class labels, uniform unless `shares` (classes,) says otherwise."""
    return Prior(Condition(label=torch.arange(classes)), shares) if classes else Prior()
