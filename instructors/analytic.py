"""Denoisers of known laws, exact at every noise level: the ground truth of the tests."""

import math

import torch
from torch import Tensor

from instructors.denoiser import Condition, Denoiser


class Mixture(Denoiser):
    """The exact denoiser of a mixture of Gaussians, low-rank covariances included.

    Component k has the covariance V diag(variances) V' + tail (I - V V').

    Args:
        weights: (K,) positive; normalised here.
        means: (K, *shape).
        variances: (K, r) along the directions V.
        directions: (K, d, r), orthonormal columns, d the product of `shape`.
        tail: (K,) variance in every other direction.
        sigma_min: Smallest level claimed; the formulas hold at all.
        sigma_max: Largest one.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        variances: Tensor,
        directions: Tensor,
        tail: Tensor,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        self.shape = tuple(means.shape[1:])
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means.flatten(1))
        self.register_buffer("variances", variances)
        self.register_buffer("directions", directions)
        self.register_buffer("tail", tail)

    def _posterior(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Per component: log of weight times noisy density (B, K), and denoised (B, K, d)."""
        s = (sigma**2)[:, None]  # (B, 1)
        apart = noisy.flatten(1)[:, None] - self.means  # (B, K, d)
        along = torch.einsum("bkd,kdr->bkr", apart, self.directions)
        inside = self.variances / (self.variances + s[..., None])  # (B, K, r) gains
        outside = (self.tail / (self.tail + s))[..., None]  # (B, K, 1)
        denoised = self.means + outside * apart
        denoised = denoised + torch.einsum(
            "bkr,kdr->bkd", (inside - outside) * along, self.directions
        )
        rest = apart.shape[-1] - along.shape[-1]
        total = self.variances + s[..., None]
        square, volume = (along**2 / total).sum(-1), total.log().sum(-1)
        if rest:  # else 0 / s, of which rounding would make anything as s goes to 0
            square = square + ((apart**2).sum(-1) - (along**2).sum(-1)) / (self.tail + s)
            volume = volume + rest * (self.tail + s).log()
        constant = apart.shape[-1] * math.log(2 * math.pi)
        return self.log_weights - 0.5 * (square + volume + constant), denoised

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        log_density, denoised = self._posterior(noisy, sigma)
        share = log_density.softmax(dim=1)
        return torch.einsum("bk,bkd->bd", share, denoised).view_as(noisy)

    def log_density(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """(B,) log of the density of x + sigma * noise at `noisy`, in nats."""
        return self._posterior(noisy, sigma)[0].logsumexp(dim=1)

    def sample(self, unit: Tensor, uniform: Tensor) -> Tensor:
        """Exact samples.

        Args:
            unit: (B, *shape) standard normal.
            uniform: (B,) in (0, 1); chooses the component.

        Returns:
            (B, *shape).
        """
        cumulative = self.log_weights.exp().cumsum(0)
        which = torch.searchsorted(cumulative, uniform.to(cumulative)).clamp(
            max=len(cumulative) - 1
        )
        flat, directions = unit.flatten(1), self.directions[which]
        along = torch.einsum("bd,bdr->br", flat, directions)
        scale = self.variances[which].sqrt() - self.tail[which].sqrt()[:, None]
        noise = self.tail[which].sqrt()[:, None] * flat
        noise = noise + torch.einsum("br,bdr->bd", scale * along, directions)
        return (self.means[which] + noise).view_as(unit)


def gaussian(mean: Tensor, covariance: Tensor, **sigmas: float) -> Mixture:
    """The exact denoiser of N(mean, covariance).

    Args:
        mean: shape, any.
        covariance: (d, d), symmetric and positive semi-definite, d the size of `mean`.
        sigmas: `sigma_min`, `sigma_max` of `Mixture`.
    """
    return mixture(mean.new_ones(1), mean[None], covariance[None], **sigmas)


def mixture(weights: Tensor, means: Tensor, covariances: Tensor, **sigmas: float) -> Mixture:
    """The exact denoiser of a mixture with weights (K,), means (K, *shape), covariances (K, d, d).

    Raises:
        ValueError: A covariance has a negative eigenvalue.
    """
    variances, directions = torch.linalg.eigh((covariances + covariances.mT) / 2)
    worst = (variances.min() / variances.abs().max().clamp(min=1e-300)).item()
    if worst < -1e-8:
        raise ValueError(f"covariance: an eigenvalue is {worst:.1e} times the largest, below zero")
    tail = means.new_zeros(len(means))
    return Mixture(weights, means, variances.clamp(min=0), directions, tail, **sigmas)


def empirical(samples: Tensor, bandwidth: float = 0.0, **sigmas: float) -> Mixture:
    """The exact denoiser of the uniform law on samples (N, *shape): memorisation itself.

    With a `bandwidth`, each sample is smeared by Gaussian noise of that width: a kernel density.
    """
    count, size = len(samples), samples[0].numel()
    return Mixture(
        samples.new_ones(count),
        samples,
        samples.new_zeros(count, 0),
        samples.new_zeros(count, size, 0),
        samples.new_full((count,), bandwidth**2),
        **sigmas,
    )


DENSE = 1024  # features up to which a covariance is formed and diagonalised as it is


def principal_axes(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues and eigenvectors of rows' rows.

    Args:
        rows: (N, d), on the CPU. Up to d = 1024 in float64, all d of them; above, the d by d
            matrix is never formed.
        rank: How many, above d = 1024.

    Returns:
        (r,) falling and (d, r) orthonormal, float64.

    Source:
        Randomised SVD: Halko, Martinsson and Tropp 2011, arXiv 0909.4061.
    """
    if rows.shape[1] <= DENSE:
        rows = rows.double()
        values, vectors = torch.linalg.eigh(rows.mT @ rows)
        return values.clamp(min=0).flip(0), vectors.flip(1)
    from sklearn.utils.extmath import randomized_svd  # half a second to import

    rank = min(rank, len(rows) - 1)
    _, scales, axes = randomized_svd(rows.numpy(), rank, random_state=0)
    return torch.from_numpy(scales).double() ** 2, torch.from_numpy(axes).double().mT


def fit_gaussian(samples: Tensor, rank: int = 1024, **sigmas: float) -> Mixture:
    """The Gaussian fitted to samples: the linear denoiser of least loss, made to generalise.

    Its covariance is (1 - a) S + a tr(S)/d I, S that of the samples: few samples must not claim
    that some direction holds nothing at all. Above d = 1024, S is `rank` leading directions by
    randomised SVD and an isotropic tail of the same trace; no d by d matrix is made.

    Args:
        samples: (N, *shape), at least two, on the CPU.
        rank: Directions kept where d is above 1024.
        sigmas: `sigma_min`, `sigma_max` of `Mixture`.

    Returns:
        A mixture of one component, float64, its directions falling in variance.

    Source:
        a: Chen, Wiesel, Eldar and Hero 2010, arXiv 0907.4698, eq. 23 (OAS), for large d.
    """
    flat, count = samples.flatten(1), len(samples)
    size = flat.shape[1]
    mean = flat.double().mean(0) if size <= DENSE else flat.mean(0)
    centred = (flat - mean) / math.sqrt(count)
    variances, directions = principal_axes(centred, rank)
    rest = size - len(variances)
    total = centred.square().sum(dtype=torch.float64)
    tail = (total - variances.sum()).clamp(min=0) / rest if rest else variances.new_zeros(())
    trace = variances.sum() + rest * tail
    square = (variances**2).sum() + rest * tail**2
    spread = (count + 1) * (square - trace**2 / size)
    share = ((square + trace**2) / spread.clamp(min=1e-300)).clamp(max=1)
    level = share * trace / size
    return Mixture(
        torch.ones(1, dtype=torch.float64),
        mean.double().view(1, *samples.shape[1:]),
        ((1 - share) * variances + level)[None],
        directions[None],
        ((1 - share) * tail + level)[None],
        **sigmas,
    )
