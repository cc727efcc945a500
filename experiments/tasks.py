"""Two related tasks of known law: x = g(h) + tau n, h = tanh(1.5 B'z), z ~ N(0, I).

Source and target have heads g of their own; their B, orthonormal, are turned against each other by
one angle in two planes. At angle 0 the embedding h is shared, at pi/2 it is of other parts of z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.curves import Estimate
from instil.base.draws import Draws
from instil.base.shapes import expand
from instructors.denoiser import Condition, Denoiser

P, R, TAU = 16, 2, 0.3  # length of z and of h, standard deviation of the noise
LOW, HIGH = 0.02, 20.0  # noise levels; below and above they hold 0.03 nats at most
ANGLES = (0.4, 0.8, math.pi / 2)
Head = Callable[[Tensor], Tensor]


def source_head(h: Tensor) -> Tensor:
    """(N, 2) to (N, 2), one to one on [-1, 1]^2."""
    first, second = h.unbind(1)
    return torch.stack([first + 0.5 * second**2, second - 0.5 * first**2], dim=1)


def target_head(h: Tensor) -> Tensor:
    """(N, 2) to (N, 2), another one."""
    first, second = h.unbind(1)
    return torch.stack([1.2 * (2 * first).sin() + 0.4 * second, second + 0.6 * first * second], 1)


def waves(features: int) -> Head:
    """A head to vectors of any length: sines of fixed random projections."""
    frequencies = 2 * Draws.of_range(9, 0, 0, R).normal("head", (features,))
    return lambda h: (h @ frequencies).sin()


@dataclass(frozen=True)
class Task:
    """One of them.

    Attributes:
        angle: Between its B and the target's, radians.
        head: g.
        features: Length of x.
    """

    angle: float = 0.0
    head: Head = target_head
    features: int = 2

    def seen(self, z: Tensor) -> Tensor:
        """(N, R) B'z, all that x depends on."""
        return math.cos(self.angle) * z[:, :R] + math.sin(self.angle) * z[:, R : 2 * R]

    def mean(self, z: Tensor) -> Tensor:
        """(N, features) of x given z."""
        return self.head((1.5 * self.seen(z)).tanh())

    def sample(self, count: int, seed: int) -> tuple[Tensor, Condition]:
        """(count, features) x, and z as their condition."""
        draws = Draws.of_range(seed, 0, 0, count)
        z = draws.normal("z", (P,))
        x = self.mean(z) + TAU * draws.normal("x", (self.features,))
        return x, Condition(context=z)

    def log_density(self, x: Tensor, condition: Condition) -> Tensor:
        """(N,) of x given z, nats."""
        return normal_log_density(x - self.mean(condition["context"]))


def normal_log_density(apart: Tensor) -> Tensor:
    """(...) log-density of tau n at (..., d), nats."""
    volume = apart.shape[-1] * math.log(2 * math.pi * TAU**2)
    return -0.5 * (apart.square().sum(-1) / TAU**2 + volume)


class Exact(Denoiser):
    """The denoiser that knows a task's law: what excess is measured against."""

    text = ("context",)

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.shape = task, (task.features,)
        self.sigma_min, self.sigma_max = LOW, HIGH

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s = expand(sigma, noisy) ** 2
        return (TAU**2 * noisy + s * self.task.mean(condition["context"])) / (TAU**2 + s)


def gap(angle: float, outer: int = 2000, inner: int = 4096, task: Task = Task()) -> Estimate:
    """I(x; z | h) of the target and the source's embedding, by nested Monte Carlo from the law.

    No network takes part. Given u = B_s'z, what the target sees is N(cos(angle) u, sin(angle)^2 I).

    Args:
        angle: Between the two, radians.
        outer: Samples of x.
        inner: Samples of z given h, for the density of x given h.
        task: The target, at angle 0.
    """
    source = Task(angle)
    x, condition = task.sample(outer, seed=77)
    u = source.seen(condition["context"])
    unit = Draws.of_range(78, 0, 0, inner).normal("inner", (R,))
    blind = torch.empty(outer)
    for rows in torch.arange(outer).split(100):
        v = math.cos(angle) * u[rows, None] + math.sin(angle) * unit  # (B, inner, R)
        mean = task.head((1.5 * v).tanh().flatten(0, 1)).view(*v.shape[:2], -1)
        blind[rows] = normal_log_density(x[rows, None] - mean).logsumexp(1) - math.log(inner)
    return Estimate.of(task.log_density(x, condition) - blind)
