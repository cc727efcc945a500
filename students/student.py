"""The contract of every generator."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition, class_labels

Latent = tuple[Tensor, ...]


class Student(nn.Module, ABC):
    """A generator: a latent in, a sample out, with gradients to every parameter.

    Nothing inside draws random numbers: what is random is part of the latent.

    Attributes:
        shape: One sample without the batch axis, in the instructor's space and range.
        classes: Number of class labels; 0 if unconditional.
        nfe: Network evaluations per sample.
    """

    shape: tuple[int, ...]
    classes: int
    nfe: int

    @abstractmethod
    def prior(self, draws: Draws) -> Latent:
        """Draw the latents of the samples in `draws`: tensors with a leading batch axis."""

    @abstractmethod
    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Map latents to samples (B, *shape) in [-1, 1]; not clamped, which would cut gradients."""

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; dropout stays off, since it draws random numbers."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        return self

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """Draw samples by seed: number k is a function of seed k and label k alone.

        Args:
            seeds: One per sample, from 0 on.
            labels: Class numbers; None runs through the classes as the seeds do.

        Returns:
            (len(seeds), *shape), in about [-1, 1], not clamped.

        Raises:
            InstilError: Another number of labels, one that is no class, or labels without classes.
        """
        index = torch.tensor(seeds, device=next(self.parameters()).device)
        if labels is None:
            condition = class_labels(self.classes, index)
        else:
            numbers = torch.tensor(labels, device=index.device)
            if (
                numbers.shape != index.shape
                or not ((numbers >= 0) & (numbers < self.classes)).all()
            ):
                raise InstilError(
                    f"labels: expected {len(index)} class numbers below {self.classes}"
                )
            condition = Condition(label=numbers)
        training = self.training
        self.eval()
        try:
            return self(self.prior(Draws(0, 0, index)), condition)
        finally:
            self.train(training)


def one_hot(condition: Condition, classes: int, like: Tensor) -> Tensor:
    """Labels of a condition as (B, classes) zeros and ones in the dtype of `like` (B, …).

    Raises:
        ValueError: A label is missing or not expected.
    """
    label = condition.get("label")
    if (label is None) == bool(classes):
        got = "none" if label is None else "some"
        wanted = f"class numbers below {classes}" if classes else "no labels"
        raise ValueError(f"label: expected {wanted}, got {got}")
    if label is None:
        return like.new_zeros(len(like), 0)
    return torch.nn.functional.one_hot(label, classes).to(like.dtype)
