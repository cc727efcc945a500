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


def empirical(samples: Tensor, **sigmas: float) -> Mixture:
    """The exact denoiser of the uniform law on samples (N, *shape): memorisation itself."""
    count, size = len(samples), samples[0].numel()
    return Mixture(
        samples.new_ones(count),
        samples,
        samples.new_zeros(count, 0),
        samples.new_zeros(count, size, 0),
        samples.new_zeros(count),
        **sigmas,
    )
