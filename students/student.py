"""The contract of every generator."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from instil.draws import Draws
from instructors.denoiser import UNCONDITIONAL, Condition

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


def one_hot(condition: Condition, classes: int, like: Tensor) -> Tensor:
    """The labels of a condition as (B, classes) zeros and ones, with the rows of `like` (B, …).

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
