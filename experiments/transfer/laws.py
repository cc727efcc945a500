"""Exact laws of transfer, against which the claims of arXiv 2405.16837 are checked.

When transfer turns negative is known exactly where everything is linear and Gaussian: a target
x = C B_t' z + tau n in R^d, z ~ N(0, I_p), and the source's embedding h = B_s' z in R^r, both B
orthonormal. With S = B_t'(I - B_s B_s')B_t, whose eigenvalues are the squared sines of the
principal angles between the two, least squares on n samples risks

    (1)  frozen   tr(tau^2 I + C S C') (1 + r / (n - r - 1))
    (2)  scratch  tau^2 d (1 + p / (n - p - 1))
    (3)  n_neg = p + 1 + tau^2 d (p - r) / tr(C S C')    above it, (1) exceeds (2)
    (4)  embedding gap  I(x; z | h) = 1/2 log det(tau^2 I + C S C') - d log tau

and the gap (4), the information on x that the borrowed embedding does not pass on, is the least KL
of any model that sees h alone. (1) to (3) are the risk of least squares with Gaussian design.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from eval.cross_fitting import all_but, folds_of
from eval.transfer.compare import Comparison, folds_for
from instil.base.errors import InstilError

# An arm: rows to train on and rows to score, to (len(scored),) nats.
Fit = Callable[[Tensor, Tensor], Tensor]


def cross_validate(
    arms: Mapping[str, Fit],
    count: int,
    folds: int | None = None,
    seed: int = 0,
    strata: Tensor | None = None,
) -> Comparison:
    """Fit every arm to all folds but one, score it on that one, for each fold.

    Args:
        arms: Each fits a model to some rows and scores it on others.
        count: Samples of the target.
        folds: None for `folds_for` so many samples.
        seed: Of the folds.
        strata: (N,) class of each sample; every fold gets its share of each.

    Raises:
        InstilError: Fewer than two folds or samples in one.
    """
    parts = folds_of(count, folds_for(count) if folds is None else folds, seed, strata)
    nats = {arm: torch.empty(count, dtype=torch.float64) for arm in arms}
    for number, held_out in enumerate(parts):
        rest = all_but(parts, number)
        for arm, fit in arms.items():
            nats[arm][held_out] = fit(rest, held_out).double().cpu()
    return Comparison(nats, parts)


def linear_risks(
    p: int, r: int, d: int, noise_var: float, lost: float, count: int
) -> tuple[float, float]:
    """(1) and (2) of the module docstring: risks of frozen and of scratch.

    Args:
        p: Length of z.
        r: Length of the embedding.
        d: Length of x.
        noise_var: tau^2.
        lost: tr(C S C'), the signal that the borrowed embedding cannot see.
        count: Samples of the target, n; with p + 1 or fewer (2) is infinite.

    Raises:
        InstilError: A number is not positive, r is not below p, or n is not above r + 1.
    """
    if min(r, d) < 1 or not r < p or noise_var <= 0 or lost < 0 or count <= r + 1:
        raise InstilError(
            f"p {p}, r {r}, d {d}, noise_var {noise_var:g}, lost {lost:g}, count {count}: expected "
            "1 <= r < p, d >= 1, a positive variance, lost >= 0 and more than r + 1 samples"
        )
    frozen = (noise_var * d + lost) * (1 + r / (count - r - 1))
    scratch = math.inf if count <= p + 1 else noise_var * d * (1 + p / (count - p - 1))
    return frozen, scratch


def turning_point(p: int, r: int, d: int, noise_var: float, lost: float) -> float:
    """(3): the target size above which transfer is negative; infinite where nothing is lost."""
    return math.inf if lost == 0 else p + 1 + noise_var * d * (p - r) / lost


def lost_signal(head: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """C S C' (d, d) of the module docstring.

    Args:
        head: C, (d, k).
        target: B_t (p, k), orthonormal columns.
        source: B_s (p, r), orthonormal columns.
    """
    seen = source.mT @ target
    eye = torch.eye(target.shape[1], dtype=target.dtype)
    return head @ (eye - seen.mT @ seen) @ head.mT


def linear_gap(lost: Tensor, noise_var: float) -> float:
    """(4) in nats, from C S C' (d, d) and tau^2."""
    eye = torch.eye(len(lost), dtype=lost.dtype)
    return 0.5 * torch.logdet(eye + lost / noise_var).item()


def jacobian_angles(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], z: Tensor, rank: int
) -> Tensor:
    """A quick proxy of the gap: principal angles of what two regressions depend on.

    The directions of z that a regression E[x | z] depends on are the leading singular vectors of
    its Jacobians. Two tasks share an embedding of this rank only if they are the same.

    Args:
        first: z (N, p) to the mean of x (N, d), differentiable, row by row.
        second: Likewise, of the other task.
        z: (N, p) where to look.
        rank: Length of the embedding.

    Returns:
        (rank,) radians, rising.

    Raises:
        InstilError: The rank is not from 1 to p.
    """
    from eval.latents.angles import principal_angles

    if not 1 <= rank <= z.shape[1]:
        raise InstilError(f"rank {rank}: expected 1 to {z.shape[1]}, the length of z")
    return principal_angles(*(_active(each, z)[:, :rank] for each in (first, second)))


def _active(regression: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """(p, p) directions of z, by how much the regression depends on them."""
    leaf = z.detach().clone().requires_grad_()
    outputs = regression(leaf).sum(0)
    rows = [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in outputs]
    return torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)[2].mH
