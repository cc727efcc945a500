"""Distances between laws of vectors whose densities are known."""

from torch import Tensor

from eval.curves import Estimate
from instil.base.errors import InstilError


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
