"""Principal angles between linear latent spaces, and when to relearn a space."""

import math
from collections.abc import Sequence

import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from instil.base.errors import InstilError

Levels = float | Sequence[float] | Tensor


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles between two subspaces, small ones to full accuracy.

    Args:
        first: (d, k), columns that span the first.
        second: (d, m), columns that span the second.

    Returns:
        (min(k, m),) float64, rising, radians in [0, pi/2].

    Raises:
        InstilError: Columns are dependent, or the lengths differ.

    Source:
        Knyazev and Argentati 2002, SIAM J. Sci. Comput. 23(6), as SciPy implements it.
    """
    one, two = (orthonormal(basis) for basis in (first, second))
    if len(one) != len(two):
        raise InstilError(f"bases: of {len(one)} and {len(two)} features; expected the same space")
    return torch.from_numpy(subspace_angles(one.numpy(), two.numpy())).flip(0)


def orthonormal(basis: Tensor) -> Tensor:
    """`basis` (d, m) itself in float64 if its columns are orthonormal, else a basis of their span.

    Raises:
        InstilError: The columns are dependent, or more than there are features.
    """
    if basis.dim() != 2 or not 0 < basis.shape[1] <= basis.shape[0]:
        raise InstilError(
            f"basis: has the shape {tuple(basis.shape)}; expected (features, m), m <= features"
        )
    basis = basis.double()
    unit = torch.eye(basis.shape[1], dtype=torch.float64)
    if torch.allclose(basis.mT @ basis, unit, rtol=0, atol=1e-12):
        return basis
    scales = torch.linalg.svdvals(basis)
    if not scales[-1] > 1e-10 * scales[0]:
        raise InstilError(
            f"basis: its {basis.shape[1]} columns are dependent; leave out what the others span"
        )
    return torch.linalg.qr(basis)[0]


def relearn_threshold(variances: Tensor, dim: int, excess: float) -> float:
    """Samples of the target above which its own PCA beats reuse, to first order in 1/n.

    A PCA of n samples leaves out, beyond what must be left, the sum over kept i and dropped j of
    v_i v_j/(n (v_i - v_j)): n* is where that equals what reuse leaves out in excess.

    Args:
        variances: (d,) eigenvalues of the target's covariance, falling.
        dim: m, the size of both spaces.
        excess: Variance of the target that the source's space leaves out, less that of the best
            space of its size; for signal l in k directions, l |sin angles|^2.

    Returns:
        n*; infinite where reuse loses nothing or two variances at the cut are equal.

    Source:
        First-order perturbation of eigenvectors, e.g. Anderson 1963, Ann. Math. Stat. 34(1).
    """
    kept, dropped = variances.double()[:dim, None], variances.double()[None, dim:]
    loss = (kept * dropped / (kept - dropped)).sum().item()
    return loss / excess if excess > 0 and math.isfinite(loss) else math.inf
