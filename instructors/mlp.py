"""How a network is called: one convention over diffusers' classes and our own."""

import itertools
import math

import torch
from torch import Tensor, nn


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with SiLU between them; the identity for one width."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.SiLU()] if number else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


class MLP(nn.Module):
    """A small network for vectors: residual SiLU layers, time and label embedded.

    Args:
        features: Length of a vector.
        width: Length of the hidden layers.
        depth: Number of residual layers.
        classes: Number of class labels; 0 for none.
        context: Length of the vector `context` in the condition, once embedded; 0 for none.
        embed: What it passes first, such as an embedding that two tasks share.
    """

    def __init__(
        self,
        features: int,
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        context: int = 0,
        embed: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-1, 4), persistent=False)
        self.embed = embed or nn.Identity()
        self.enter = nn.Linear(features + context + 10, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Linear(width, features)
        self.label = nn.Embedding(classes, width) if classes else None

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        class_labels: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, features) and time (B,), of order one, to (B, features)."""
        phase = time[:, None] * self.frequencies
        known = [] if context is None else [self.embed(context)]
        hidden = self.enter(torch.cat([x, phase.sin(), phase.cos(), *known], dim=1))
        if self.label is not None:
            hidden = hidden + self.label(class_labels)
        for layer in self.layers:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.leave(nn.functional.silu(hidden))
