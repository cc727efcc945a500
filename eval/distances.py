"""Distance between two samples of vectors."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

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
