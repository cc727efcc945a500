"""The discriminator of adversarial training."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition


class Adversary(nn.Module):
    """Logits of images being real: residual blocks that halve the sides, then a projection.

    Args:
        shape: (C, H, W), sides that halve evenly down to 4.
        width: Channels of every layer.
        classes: Number of class labels; 0 if unconditional.

    Raises:
        InstilError: The sides do not halve down to 4.

    Source:
        Miyato and Koyama 2018, arXiv 1802.05637: labels by projection.
    """

    def __init__(self, shape: tuple[int, ...], width: int, classes: int = 0) -> None:
        super().__init__()
        channels, *sides = shape
        halvings = int(math.log2(min(sides) / 4)) if min(sides) >= 4 else 0
        if sides != [4 * 2**halvings] * 2:
            raise InstilError(f"images of {sides[0]}x{sides[1]}: expected 4x4, 8x8, 16x16, …")
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(halvings))
        self.features = nn.Linear(16 * width, 2 * width)
        self.leave = nn.Linear(2 * width, 1)
        self.label = nn.Embedding(classes, 2 * width) if classes else None

    def forward(self, images: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Map images (B, *shape) to logits (B,)."""
        x = _active(self.enter(images))
        for block in self.blocks:
            x = block(x)
        x = _active(self.features(x.flatten(1)))
        logits = self.leave(x)[:, 0]
        if self.label is None:
            return logits
        return logits + (x * self.label(condition["label"])).sum(1) / math.sqrt(x.shape[1])


class _Block(nn.Module):
    """Two convolutions beside the identity, then half the sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = _active(self.second(_active(self.first(x))))
        return functional.avg_pool2d((x + y) * math.sqrt(0.5), 2)


def _active(x: Tensor) -> Tensor:
    return math.sqrt(2) * functional.leaky_relu(x, 0.2)


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the logits' gradient at the real images, (B,), itself differentiable.

    Source:
        Mescheder et al. 2018, arXiv 1801.04406, eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)
