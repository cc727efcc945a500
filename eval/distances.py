"""Distances between laws of vectors: of samples, or where both densities are known."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from eval.curves import Estimate
from instil.base.errors import InstilError


def wasserstein2(first: Tensor, second: Tensor) -> float:
    """The 2-Wasserstein distance between two samples of one size, by optimal assignment.

    Its floor, the same distance between two samples of one law, falls slowly with N and is useless
    above a few dimensions: always print it beside.

    Args:
        first: (N, d).
        second: (N, d); N up to some thousands (cubic cost).

    Raises:
        InstilError: The sizes differ.
    """
    if first.shape != second.shape:
        raise InstilError(
            f"samples of the shapes {tuple(first.shape)} and {tuple(second.shape)}: expected one"
        )
    cost = cdist(first.detach().cpu().numpy(), second.detach().cpu().numpy(), "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def density_distances(first: Tensor, second: Tensor) -> tuple[Estimate, Estimate]:
    """KL(p || q) in nats and the total variation of p and q, of known densities.

    Args:
        first: (N,) log p at N samples of p.
        second: (N,) log q at the same samples.

    Raises:
        InstilError: They are not of as many samples, or fewer than two.
    """
    if first.shape != second.shape or first.dim() != 1 or len(first) < 2:
        raise InstilError(
            f"log-densities of the shapes {tuple(first.shape)} and {tuple(second.shape)}: expected "
            "one number for each of two samples or more"
        )
    ratio = first.double() - second.double()
    return Estimate.of(ratio), Estimate.of(1 - (-ratio).exp().clamp(max=1))
