"""The instructor's own sampler: for tables, references and grids."""

import itertools

import torch
from torch import Tensor

from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser

RHO = 7  # how much denser levels are towards the smallest (arXiv 2206.00364, table 1)


def karras_sigmas(low: float, high: float, count: int) -> list[float]:
    """`count` falling noise levels from `high` to `low` and a final 0 (arXiv 2206.00364, eq. 5)."""
    first, last = high ** (1 / RHO), low ** (1 / RHO)
    steps = [first + i / max(count - 1, 1) * (last - first) for i in range(count)]
    return [step**RHO for step in steps] + [0.0]


@torch.no_grad()
def heun(
    denoiser: Denoiser, unit: Tensor, steps: int, condition: Condition = UNCONDITIONAL
) -> Tensor:
    """Solve the probability-flow ODE by Heun's second-order method.

    Args:
        denoiser: The model.
        unit: (B, *shape) standard normal noise.
        steps: Number of noise levels; costs 2 * steps - 1 evaluations (NFE).
        condition: As the model wants it.

    Returns:
        (B, *shape), not clamped.

    Source:
        Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """
    low, high = denoiser.sampled or (denoiser.sigma_min, denoiser.sigma_max)
    sigmas = karras_sigmas(low, high, steps)
    x = unit * sigmas[0]
    for now, after in itertools.pairwise(sigmas):
        slope = (x - denoiser(x, x.new_full(x.shape[:1], now), condition)) / now
        euler = x + (after - now) * slope
        if after > 0:
            ahead = (euler - denoiser(euler, x.new_full(x.shape[:1], after), condition)) / after
            euler = x + (after - now) * (slope + ahead) / 2
        x = euler
    return x
