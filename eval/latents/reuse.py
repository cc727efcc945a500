"""Reuse, mix or relearn: which linear latent space of one size to run a diffusion in, on new data.

Three spaces of m directions compete for a target: that of the source, that of source and target
mixed, that of the target's own samples. In each, and in the whole space, a linear denoiser is
fitted to the target's training samples; their gap on held-out samples, integrated from sigma to
infinity, is the price of the space in nats, net of what estimation costs (see `eval.curves`).
Averages over the noise are exact, so the only error left is that of having few held-out samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.curves import Estimate, cross_entropy
from eval.latents.angles import principal_angles, relearn_threshold
from instil.base.data import floats
from instil.base.errors import InstilError
from instructors.analytic import DENSE, Mixture, fit_gaussian, principal_axes

ARMS = ("reuse", "mix", "relearn")


@dataclass(frozen=True)
class Space:
    """A linear latent space: what is decoded lies in offset + span of the basis.

    Attributes:
        basis: (d, m) float64, orthonormal columns.
        offset: (d,) float64.
    """

    basis: Tensor
    offset: Tensor

    def encode(self, samples: Tensor) -> Tensor:
        """(N, *shape) to (N, m) float64."""
        parts = [floats(each).flatten(1).double() for each in samples.split(1024)]
        return torch.cat([(each - self.offset) @ self.basis for each in parts])

    def squares(self, samples: Tensor) -> Tensor:
        """(N,) squared distance of every sample to the offset."""
        parts = [floats(each).flatten(1).double() for each in samples.split(1024)]
        return torch.cat([(each - self.offset).square().sum(1) for each in parts])


def principal_space(sets: Sequence[Tensor], dim: int) -> Space:
    """The leading principal directions of an even mixture of sample sets.

    Args:
        sets: Each (N, *shape); every set weighs the same, however many samples it has.
        dim: m, at most 1024: its covariance is formed.

    Raises:
        InstilError: There are not more than m samples, or fewer than m features.
    """
    flat = [floats(each).flatten(1) for each in sets]
    count, features = sum(map(len, flat)), flat[0].shape[1]
    most = min(count - 1, features, DENSE)
    if not 0 < dim <= most:
        raise InstilError(
            f"dimension {dim}: {count} samples of {features} features allow at most {most} "
            "directions; take fewer dimensions or more samples"
        )
    offset = torch.stack([each.mean(0) for each in flat]).mean(0)
    rows = torch.cat([(each - offset) / math.sqrt(len(each) * len(flat)) for each in flat])
    return Space(principal_axes(rows, dim)[1][:, :dim], offset.double())


def latent_gaussian(space: Space, samples: Tensor, noise_aware: bool = False) -> Mixture:
    """The Gaussian fitted to samples inside a space, as a law of the data.

    Args:
        space: Nothing of the law lies outside it.
        samples: (N, *shape) to fit.
        noise_aware: Let it be isotropic outside, with the samples' own variance there: the scalar
            by which a denoiser may shrink what no latent holds.
    """
    latent = space.encode(samples)
    features, dim = space.basis.shape
    inner = fit_gaussian(latent)
    tail = torch.zeros(1, dtype=torch.float64)
    if noise_aware and features > dim:
        outside = space.squares(samples) - latent.square().sum(1)
        tail = outside.mean(0, keepdim=True).clamp(min=0) / (features - dim)
    return Mixture(
        torch.ones(1, dtype=torch.float64),
        (space.offset + inner.means[0] @ space.basis.mT).view(1, *samples.shape[1:]),
        inner.variances,
        (space.basis @ inner.directions[0])[None],
        tail,
    )


@dataclass(frozen=True)
class Prices:
    """What each choice costs on held-out samples, nats per sample from sigma to infinity.

    Attributes:
        sigmas: (K,) float64.
        nats: (N, K) of every arm, one row per held-out sample.
        noise_aware: (N, K) of the same spaces where one scalar per level may shrink the rest.
        unchanged: (N, K) of the source's own model, in the whole space.
    """

    sigmas: Tensor
    nats: dict[str, Tensor]
    noise_aware: dict[str, Tensor]
    unchanged: Tensor


def arms(source: Tensor, train: Tensor, dim: int) -> dict[str, Space]:
    """The competing spaces; `relearn` is missing where the target has too few samples for it.

    Args:
        source: (N, *shape) samples of the source.
        train: (M, *shape) samples of the target to learn from.
        dim: Size of every space.

    Raises:
        InstilError: The source has too few samples or features for the size.
    """
    found = {"reuse": principal_space([source], dim), "mix": principal_space([source, train], dim)}
    return found | ({"relearn": principal_space([train], dim)} if len(train) > dim else {})


def latent_prices(
    spaces: Mapping[str, Space], source: Tensor, train: Tensor, held_out: Tensor, sigmas: Tensor
) -> Prices:
    """The price of every space.

    Args:
        spaces: Of `arms`.
        source: (N, *shape).
        train: (M, *shape) of the target, for every denoiser.
        held_out: (L, *shape) of the target, which no space and no denoiser has seen.
        sigmas: (K,).
    """
    ambient = cross_entropy(fit_gaussian(floats(train)), held_out, sigmas)
    nats, aware = (
        {
            arm: cross_entropy(latent_gaussian(space, train, noise_aware), held_out, sigmas)
            - ambient
            for arm, space in spaces.items()
        }
        for noise_aware in (False, True)
    )
    unchanged = cross_entropy(fit_gaussian(floats(source)), held_out, sigmas) - ambient
    return Prices(sigmas, nats, aware, unchanged)


@dataclass(frozen=True)
class Decision:
    """Which arm to take, and by how much.

    Attributes:
        choice: The arm to take.
        cheapest: The arm of the least mean price.
        prices: Of every arm.
        excess: What every arm costs beyond the cheapest, with the error of the paired difference.
    """

    choice: str
    cheapest: str
    prices: dict[str, Estimate]
    excess: dict[str, Estimate]


def decide(nats: Mapping[str, Tensor], tolerance: float = 0.0) -> Decision:
    """Take the least work that is not clearly dearer than the cheapest, or clearly cheap enough.

    Clearly means by more than two standard errors.

    Args:
        nats: (N,) held-out price of every arm, least work first, the same samples in each.
        tolerance: A price below which no cheaper arm is looked for.
    """
    prices = {arm: Estimate.of(each) for arm, each in nats.items()}
    cheapest = min(prices, key=lambda arm: prices[arm].value)
    excess = {arm: Estimate.of(each - nats[cheapest]) for arm, each in nats.items()}
    cheap = {arm: each.value + 2 * each.stderr <= tolerance for arm, each in prices.items()}
    choice = next(arm for arm in nats if cheap[arm] or not excess[arm].clear)
    return Decision(choice, cheapest, prices, excess)


def angle_errors(source: Space, train: Tensor, groups: int = 8) -> tuple[Tensor, Tensor]:
    """Principal angles between a space and the target's own, with standard errors.

    Args:
        source: The space, taken as given.
        train: (M, *shape) samples of the target, more than m groups / (groups - 1).
        groups: The errors are a jackknife over so many groups of the target's samples.

    Returns:
        (m,) radians, rising, and (m,) their standard errors.
    """
    dim = source.basis.shape[1]

    def angles(samples: Tensor) -> Tensor:
        return principal_angles(source.basis, principal_space([samples], dim).basis)

    rows = torch.arange(len(train)) % groups
    left_out = torch.stack([angles(train[rows != group]) for group in range(groups)])
    spread = left_out.var(0, correction=0) * (groups - 1)
    return angles(train), spread.sqrt()


def nested_prices(space: Space, train: Tensor, held_out: Tensor, sigma: float) -> Tensor:
    """The price of the first 1, …, M directions of a space, on held-out samples.

    Args:
        space: Its directions in the order in which they are kept.
        train: (N, *shape) for the denoisers.
        held_out: (L, *shape).
        sigma: Noise level at which the price counts.

    Returns:
        (L, M) nats.
    """
    features, dim = space.basis.shape
    law = fit_gaussian(space.encode(train))
    covariance = law.directions[0] @ law.variances[0].diag() @ law.directions[0].mT
    unit, s = torch.eye(dim, dtype=torch.float64), sigma**2
    # Of a lower triangular factor, the leading blocks are those of the nested spaces.
    factor = torch.linalg.cholesky(covariance + s * unit)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False)
    latent = space.encode(held_out)
    white = (latent - law.means[0]) @ inverse.mT
    inside = white.square().cumsum(1) + s * inverse.square().sum(1).cumsum(0)
    inside = inside + 2 * factor.diagonal().log().cumsum(0)
    rest = (space.squares(held_out)[:, None] - latent.square().cumsum(1)).clamp(min=0)
    outside = rest / s + (features - torch.arange(1, dim + 1)) * (1 + math.log(s))
    ambient = cross_entropy(fit_gaussian(floats(train)), held_out, [sigma])
    return 0.5 * (inside + outside) - ambient


@dataclass(frozen=True)
class SharedSize:
    """How many leading directions of the mixture both domains need, measured on held-out samples.

    Attributes:
        dim: The fewest that cost neither domain more than the tolerance; None if none tried do.
        low: The same with two standard errors less on every price.
        high: With two more.
        source: (M,) price of the first 1, …, M for the source, nats.
        source_stderr: (M,).
        target: (M,) for the target.
        target_stderr: (M,).
    """

    dim: int | None
    low: int | None
    high: int | None
    source: Tensor
    source_stderr: Tensor
    target: Tensor
    target_stderr: Tensor


def shared_size(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    sigma: float,
    nats: float,
    most: int = 512,
) -> SharedSize:
    """Size of a latent space that two domains share, from samples, their noise included.

    Args:
        source: Training and held-out samples, each (N, *shape).
        target: Likewise.
        sigma: Noise level at which the price counts.
        nats: Tolerance.
        most: Largest size tried, where the samples allow it; the whole space is none.
    """
    features = source[0][0].numel()
    most = min(most, features - 1, len(source[0]) + len(target[0]) - 1)
    space = principal_space([source[0], target[0]], most)
    found = [nested_prices(space, *domain, sigma) for domain in (source, target)]
    means = [each.mean(0) for each in found]
    errors = [each.std(0) / math.sqrt(len(each)) for each in found]

    def first(shift: float) -> int | None:
        worst = torch.maximum(*(m + shift * e for m, e in zip(means, errors, strict=True)))
        within = (worst <= nats).nonzero()
        return int(within[0]) + 1 if len(within) else None

    return SharedSize(first(0), first(-2), first(2), means[0], errors[0], means[1], errors[1])


def sigma_within(sigmas: Tensor, nats: Tensor, tolerance: float) -> float | None:
    """The noise level above which a price stays below a tolerance, log-log interpolated.

    Args:
        sigmas: (K,) rising.
        nats: (K,) prices at them.
        tolerance: In nats.

    Returns:
        The first level if all prices are below; None if the last one is not.
    """
    above = (nats > tolerance).nonzero()
    if not len(above):
        return sigmas[0].item()
    k = int(above[-1])
    if k + 1 == len(sigmas):
        return None
    ends = nats[k : k + 2].clamp(min=1e-12).log()
    share = (math.log(tolerance) - ends[0]) / (ends[1] - ends[0])
    return torch.lerp(sigmas[k].log(), sigmas[k + 1].log(), share).exp().item()


def relearn_samples(space: Space, train: Tensor) -> float:
    """n*: samples from which the target's own directions beat a space, to first order.

    The excess of `relearn_threshold` is taken under the Gaussian fitted to `train`.
    """
    law, dim = fit_gaussian(floats(train)), space.basis.shape[1]
    directions, tail = law.directions[0], law.tail[0]
    rest = len(directions) - directions.shape[1]
    variances = torch.cat([law.variances[0], tail.expand(rest)])
    along = directions.mT @ space.basis
    inside = ((law.variances[0] - tail)[:, None] * along.square()).sum() + dim * tail
    excess = (variances[:dim].sum() - inside).item()
    return relearn_threshold(variances, dim, excess)
