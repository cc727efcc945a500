"""Exact laws of latent spaces, against which the claims of arXiv 2605.13448 are checked.

A latent space is an orthonormal basis U (d, m) and an offset c; its denoisers decode into c +
span U, D_U(x) = c + U f(U'(x - c)), and f is the best one. With P = I - UU', data N(mu, S),
s = sigma^2, phi(l) = l^2/(l + s) and K(l) = (l/s - log(1 + l/s))/2, each acting on eigenvalues:

    (1)  s^2 error = |P(mu - c)|^2 + tr phi(S) - tr phi(U'SU)       error: squared score error
    (2)  price = |P(mu - c)|^2/(2s) + tr K(S) - tr K(U'SU)          KL of the data's law at sigma
                                                                    from its projection's, nats
    (3)  for S = l AA' + t I with angles a_i between A and U, both (d, k):
         s^2 error = sum_i [phi(l + t) - phi(l cos^2 a_i + t)]      misalignment
                   + (d - k) phi(t)                                 ambient noise
    (4)  v AA' + w BB' has the eigenvalues ((v + w) +- sqrt((v + w)^2 - 4 v w sin^2 a_i))/2

The price is the integral of sigma * error from sigma to infinity, which `eval.curves` measures on
data. What the ambient noise costs can be bought back by one scalar per sigma that shrinks what lies
outside the space (the noise-aware class); what the misalignment costs cannot.

Source:
    The setting is that of Yu and Yu, "On the Limits of Latent Reuse in Diffusion Models", arXiv
    2605.13448. These laws are derived here and hold with equality; they are not its theorems.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.curves import LossCurve, denoising_loss_curve, loss_gap
from eval.image_sets import refuse_shared
from eval.latents.angles import Levels, orthonormal
from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.denoiser import Condition, Denoiser


def variance_kl(variance: Tensor, s: Tensor | float) -> Tensor:
    """K(l) of the module docstring: KL(N(0, l + s) || N(0, s)) in nats, elementwise and stable."""
    u = variance.clamp(min=0) / s
    return torch.where(u < 1e-3, u**2 / 4 - u**3 / 6 + u**4 / 8, 0.5 * (u - u.log1p()))


def _shrunk(variance: Tensor, s: Tensor) -> Tensor:
    """phi(l) of the module docstring."""
    return variance**2 / (variance + s)


def latent_score_error(
    covariance: Tensor,
    basis: Tensor,
    sigma: Levels,
    *,
    offset: Tensor | None = None,
    noise_aware: bool = False,
) -> Tensor:
    """The squared error of the best score in a latent space, for Gaussian data: (1).

    Args:
        covariance: (d, d) of the data.
        basis: (d, m) of the latent space.
        sigma: Noise levels, data units.
        offset: (d,) mean of the data less the offset of the space; None is 0.
        noise_aware: Of the class that may also shrink what lies outside by one scalar per level.

    Returns:
        (K,) float64.

    Raises:
        InstilError: The covariance is not square, symmetric and positive semi-definite, shapes do
            not fit, the basis is dependent, or a level is not positive.
    """
    whole, inside, lost, s = _spectra(covariance, basis, offset, sigma)
    error = lost - (whole.sum() - inside.sum()) + _shrunk(whole, s).sum(1)
    error = error - _shrunk(inside, s).sum(1)
    rest = len(whole) - len(inside)
    if noise_aware and rest:
        error = error - rest * _shrunk(lost / rest, s[:, 0])
    return error / s[:, 0] ** 2


def latent_kl(
    covariance: Tensor,
    basis: Tensor,
    sigma: Levels,
    *,
    offset: Tensor | None = None,
    noise_aware: bool = False,
) -> Tensor:
    """The price of a latent space in nats, for Gaussian data: (2); the same for VE and VP.

    Args:
        covariance: As `latent_score_error` takes it, and likewise the others.
        basis: (d, m).
        sigma: Noise levels.
        offset: (d,) or None.
        noise_aware: Of that class.

    Returns:
        (K,) float64, KL(p_sigma || law of the projected data at sigma).

    Raises:
        InstilError: As there.
    """
    whole, inside, lost, s = _spectra(covariance, basis, offset, sigma)
    price = (lost - whole.sum() + inside.sum()) / (2 * s[:, 0])
    price = price + variance_kl(whole, s).sum(1) - variance_kl(inside, s).sum(1)
    rest = len(whole) - len(inside)
    return price - (rest * variance_kl(lost / rest, s[:, 0]) if noise_aware and rest else 0)


def _spectra(
    covariance: Tensor, basis: Tensor, offset: Tensor | None, sigma: Levels
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues of S and of U'SU, tr PS + |P(mu - c)|^2, and s as (K, 1)."""
    covariance, basis, s = symmetric(covariance), orthonormal(basis), _squares(sigma)
    if len(basis) != len(covariance):
        raise InstilError(
            f"basis: of {len(basis)} features, the covariance of {len(covariance)}; "
            "expected the same"
        )
    whole = torch.linalg.eigvalsh(covariance).clamp(min=0)
    inside = torch.linalg.eigvalsh(basis.mT @ covariance @ basis).clamp(min=0)
    lost = (whole.sum() - inside.sum()).clamp(min=0)
    if offset is not None:
        outside = offset.double() - basis @ (basis.mT @ offset.double())
        lost = lost + outside.square().sum()
    return whole, inside, lost, s[:, None]


def symmetric(covariance: Tensor) -> Tensor:
    """A covariance in float64, made exactly symmetric.

    Raises:
        InstilError: It is not square, or an eigenvalue lies below zero by more than rounding.
    """
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise InstilError(f"covariance: has the shape {tuple(covariance.shape)}; expected (d, d)")
    covariance = (covariance.double() + covariance.double().mT) / 2
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -1e-8 * values[-1].abs():
        raise InstilError(
            f"covariance: has the eigenvalue {values[0]:.3g}; expected none below zero"
        )
    return covariance


def _squares(sigma: Levels) -> Tensor:
    """(K,) float64, squared."""
    levels = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)
    if not (levels > 0).all() or not levels.isfinite().all():
        raise InstilError(f"sigma {levels.tolist()}: expected positive, finite noise levels")
    return levels**2


def angle_score_error(
    angles: Tensor, signal: float, noise: float, features: int, sigma: Levels
) -> tuple[Tensor, Tensor]:
    """The two causes of the error for signal in a subspace and isotropic noise: (3).

    Args:
        angles: (k,) radians between the signal's subspace and the latent one, both (d, k).
        signal: l, variance of the signal along each of its directions.
        noise: t, variance of the noise.
        features: d.
        sigma: Noise levels.

    Returns:
        Misalignment and ambient noise, each (K,); they add up to `latent_score_error`.
    """
    s, angles = _squares(sigma)[:, None], angles.double()
    along = torch.full_like(angles, signal + noise)
    apart = _shrunk(along, s) - _shrunk(signal * angles.cos() ** 2 + noise, s)
    ambient = (features - len(angles)) * _shrunk(torch.tensor([noise], dtype=torch.float64), s)
    return apart.sum(1) / s[:, 0] ** 2, ambient[:, 0] / s[:, 0] ** 2


def mixed_structure(angles: Tensor, first: float, second: float) -> tuple[Tensor, Tensor, Tensor]:
    """The eigenspaces of v AA' + w BB', what training on two domains at once sees.

    Args:
        angles: (k,) radians between A and B.
        first: v, share of the first domain times its variance.
        second: w, likewise.

    Returns:
        The upper and lower eigenvalue of each pair (k,) by (4), and the angle (k,) of the upper
        eigenvector from A towards B.
    """
    total, angles = first + second, angles.double()
    root = (total**2 - 4 * first * second * angles.sin() ** 2).clamp(min=0).sqrt()
    tilt = 0.5 * torch.atan2(second * (2 * angles).sin(), first + second * (2 * angles).cos())
    return (total + root) / 2, (total - root) / 2, tilt


@dataclass(frozen=True)
class SharedDimension:
    """How large a latent space two domains can share.

    Attributes:
        dim: The smallest that costs neither more than the tolerance; None if no size tried does.
        source: (M,) price of the leading 1, …, M directions for the source, nats.
        target: (M,) for the target.
    """

    dim: int | None
    source: Tensor
    target: Tensor


def shared_dimension(
    source: Tensor,
    target: Tensor,
    sigma: float,
    nats: float,
    *,
    weight: float = 0.5,
    noise: tuple[float, float] = (0.0, 0.0),
    most: int | None = None,
) -> SharedDimension:
    """The leading eigenvectors of the mixed covariance that both domains need, exactly.

    Args:
        source: (d, d) covariance; both domains have one mean.
        target: (d, d).
        sigma: Noise level at which the price counts.
        nats: Tolerance, on the price less that of ambient noise.
        weight: Share of the target in the mixture.
        noise: Variance of the isotropic noise of source and target, whose price (d - m) K is
            subtracted: no space but the whole one avoids it.
        most: Sizes tried, M; None tries all.

    Raises:
        InstilError: A covariance or sigma is not as `latent_kl` wants it.
    """
    source, target = symmetric(source), symmetric(target)
    if source.shape != target.shape:
        raise InstilError(
            f"covariances: of {len(source)} and {len(target)} features; expected the same space"
        )
    basis = torch.linalg.eigh((1 - weight) * source + weight * target)[1].flip(1)[:, :most]
    s, sizes = _squares(sigma), torch.arange(1, basis.shape[1] + 1)
    prices = []
    for covariance, floor in zip((source, target), noise, strict=True):
        whole = variance_kl(torch.linalg.eigvalsh(covariance), s).sum()
        ambient = (len(covariance) - sizes) * variance_kl(
            torch.tensor(floor, dtype=torch.float64), s
        )
        prices.append(whole - _nested_kl(basis.mT @ covariance @ basis, s) - ambient)
    within = (torch.maximum(*prices) <= nats).nonzero()
    return SharedDimension(int(sizes[within[0]]) if len(within) else None, *prices)


def _nested_kl(inside: Tensor, s: Tensor) -> Tensor:
    """(M,) tr K of the leading 1x1, …, MxM blocks of (M, M), all by one Cholesky factorisation."""
    factor = torch.linalg.cholesky(inside / s + torch.eye(len(inside), dtype=inside.dtype))
    return 0.5 * (inside.diagonal() / s - 2 * factor.diagonal().log()).cumsum(0)


class LatentDenoiser(Denoiser):
    """A denoiser that works in a latent space: c + U f(U'(x - c)), optionally noise-aware.

    Args:
        inner: f, a denoiser of vectors (m,).
        basis: (d, m), orthonormal columns.
        offset: (d,).
        outside: Variance per direction of the data outside the space; above 0, the noise-aware
            class, D + g P(x - c) with g = outside/(outside + sigma^2).
    """

    def __init__(
        self, inner: Denoiser, basis: Tensor, offset: Tensor, outside: float = 0.0
    ) -> None:
        super().__init__()
        self.inner, self.outside = inner, outside
        self.shape = tuple(offset.shape)
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max
        self.register_buffer("basis", basis)
        self.register_buffer("offset", offset)

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        apart = noisy - self.offset
        latent = apart @ self.basis
        gain = expand(self.outside / (self.outside + sigma**2), noisy)
        inner = self.inner(latent, sigma, condition) - gain * latent
        return self.offset + inner @ self.basis.mT + gain * apart


def autoencoder_price(
    fit: Callable[[Tensor], Denoiser],
    train: Tensor,
    reconstructed: Tensor,
    held_out: Tensor,
    sigmas: Sequence[float] | Tensor,
    **settings: Any,
) -> LossCurve:
    """The price as a gap of loss curves, between denoisers fitted by one recipe.

    Args:
        fit: Makes a denoiser of samples (M, *shape).
        train: (M, *shape) of the target.
        reconstructed: g(e(x)) of them.
        held_out: (N, *shape) of the target.
        sigmas: (K,) noise levels.
        settings: Further keywords of `denoising_loss_curve`.

    Returns:
        The loss of the denoiser of reconstructions less that of the denoiser of data;
        `integrate_gap` makes nats of it.

    Raises:
        InstilError: Training and held-out samples overlap, or as `denoising_loss_curve` says.
    """
    refuse_shared(held_out, train, "held-out samples", "the training samples")
    curves = (
        denoising_loss_curve(fit(samples), held_out, sigmas, **settings)
        for samples in (reconstructed, train)
    )
    return loss_gap(*curves)
