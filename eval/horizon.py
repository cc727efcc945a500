"""Up to which noise level a model is worth running: a certificate without constants nobody knows.

A model D runs the reverse SDE from sigma = T down to e, started at v_T: the law v, a reference such
as a Gaussian, under noise T. Up to a constant that depends on neither T nor D (nats per sample),

    (1)  KL(p_e || generated_e) <= J(T) = integral from e to T of mse_D u^-3 du
                                        + integral from T to infinity of mse_v u^-3 du
    (2)  J(T) - J(e) = integral from e to T of (mse_D - mse_v) u^-3 du

so J is least where D's loss on samples it was not trained on stops beating the denoiser of the
reference, which is known in closed form. (1) adds identities (2) and (4) of `eval.curves`. One
model serves every T. J is flat near its minimum: the number to use is the smallest T whose J is
within a tolerance of it. J is a bound: the T of its minimum need not be that of the divergence.

The reference `gaussian` has the moments of the training samples; `zero` is an atom, so that v_T is
N(0, T^2), the prior of variance-exploding models; `standard` is N(0, I), whose noisy version is,
scaled, the prior N(0, I) of variance-preserving ones at the time integral of beta = log(1 + T^2).

Source:
    The question is that of Chen, Zhu and Shkurti, "Generalization in VAE and Diffusion Models",
    arXiv 2506.00849. The certificate is derived here; `eval.bounds` has a bound of their shape.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eval.curves import (
    Estimate,
    LossCurve,
    contributions,
    denoising_loss_curve,
    gaussian_loss_curve,
    loss_gap,
)
from eval.samples import check_samples, digest
from instil.data import floats
from instil.draws import Draws
from instil.errors import InstilError
from instructors.analytic import Mixture, empirical, fit_gaussian
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser

Reference = Literal["gaussian", "zero", "standard"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
RESAMPLES = 200  # of the bootstrap
FINE = 32  # points between two levels, where the integrand is interpolated


def reference_law(kind: Reference, samples: Tensor) -> Mixture:
    """The law v of the module docstring, float64.

    Args:
        kind: Which one.
        samples: (N, *shape), those the model was trained on; uint8 images become [-1, 1].
    """
    if kind == "gaussian":
        return fit_gaussian(floats(samples))
    atom = torch.zeros(1, *samples.shape[1:], dtype=torch.float64)
    return empirical(atom, bandwidth=float(kind == "standard"))


def noise_levels(low: float, high: float, per_decade: int = 8) -> Tensor:
    """(K,) float64 levels from `low` to `high`, evenly spaced in log sigma.

    Raises:
        InstilError: They are not positive and in order.
    """
    if not 0 < low < high < math.inf:
        raise InstilError(f"noise levels from {low:g} to {high:g}: expected 0 < lowest < highest")
    count = max(2, math.ceil(per_decade * math.log10(high / low)) + 1)
    levels = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()
    levels[0], levels[-1] = low, high
    return levels


def paired_losses(
    model: Denoiser,
    reference: Mixture,
    samples: Tensor,
    sigmas: Tensor,
    condition: Condition = UNCONDITIONAL,
    **options: Any,
) -> tuple[LossCurve, LossCurve]:
    """Losses of a model and of a Gaussian, the Gaussian's with its noise averaged exactly.

    Both meet one noise, and what it did to the Gaussian is taken off the model's loss too: a
    control variate, without which the noise of low levels would drown everything.

    Args:
        model: Not trained on the samples.
        reference: Of one component.
        samples: (N, *shape).
        sigmas: (K,).
        condition: Of the model.
        options: Of `denoising_loss_curve`: noise_draws, seed, batch, device, label.

    Raises:
        InstilError: As there.
    """
    drawn = denoising_loss_curve(model, samples, sigmas, condition=condition, **options)
    law = copy.deepcopy(reference).to(options.get("device", "cpu"))
    baseline = denoising_loss_curve(law, samples, sigmas, **options | {"label": None})
    exact = gaussian_loss_curve(reference, samples, sigmas)
    return replace(exact, losses=loss_gap(drawn, baseline).losses + exact.losses), exact


@dataclass(frozen=True)
class Losses:
    """What `cross_fitted` measures; every curve has one row per sample.

    Attributes:
        model: Loss of the model that was fitted without the sample.
        reference: Of the reference that was fitted without it.
        seen: Loss of a model on samples that it was fitted to, these or others; None where no such
            samples are known.
    """

    model: LossCurve
    reference: LossCurve
    seen: LossCurve | None = None


def folds_of(count: int, folds: int, seed: int = 0, strata: Tensor | None = None) -> list[Tensor]:
    """Row numbers of each fold: a random partition of `count` samples into nearly equal parts.

    Args:
        count: Samples.
        folds: Parts.
        seed: Of the partition.
        strata: (count,) class of each sample; every part gets its share of each.

    Raises:
        InstilError: Fewer than two folds, or not two samples for each.
    """
    if folds < 2 or count < 2 * folds:
        raise InstilError(
            f"folds: {folds} of {count} samples; expected at least 2 folds of 2 samples or more"
        )
    order = Draws.of_range(seed, 0, 0, count).uniform("fold").argsort()
    if strata is not None:
        order = order[strata[order].argsort(stable=True)]
        return [order[first::folds].sort().values for first in range(folds)]
    return [part.sort().values for part in order.tensor_split(folds)]


def all_but(parts: Sequence[Tensor], number: int) -> Tensor:
    """Row numbers of all folds but one, in order."""
    return torch.cat([part for k, part in enumerate(parts) if k != number]).sort().values


def cross_fitted(
    fit: Callable[[Tensor], Denoiser],
    samples: Tensor,
    sigmas: Tensor,
    *,
    reference: Reference = "gaussian",
    folds: int = 5,
    trained: bool = True,
    condition: Condition = UNCONDITIONAL,
    strata: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Losses:
    """Losses on every sample of models and references that were fitted without it.

    Args:
        fit: Makes the model from the row numbers of its training samples.
        samples: (N, *shape), all that there is.
        sigmas: (K,).
        reference: Fitted to the same rows as the model.
        folds: Each is left out once.
        trained: Whether `fit` trains on the rows. False says that the model was made elsewhere, of
            other samples: then only the reference is cross-fitted, and nothing is `seen`.
        condition: Of all N samples.
        strata: As `folds_of` takes it.
        seed: Of folds and noise.
        options: Of `denoising_loss_curve`.

    Raises:
        InstilError: As `denoising_loss_curve` and `folds_of`.
    """
    check_samples(samples)
    parts = folds_of(len(samples), folds, seed, strata)
    shape, drawn = (len(samples), len(sigmas)), f"{digest(samples)}, {folds} folds, seed {seed}"
    model, law, seen = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(3))
    for number, rows in enumerate(parts):
        rest = all_but(parts, number)
        denoiser, gaussian = fit(rest), reference_law(reference, samples[rest])

        def losses(
            which: Tensor, denoiser: Denoiser = denoiser, gaussian: Mixture = gaussian
        ) -> tuple[Tensor, Tensor]:
            given = condition.rows(which)
            pair = paired_losses(
                denoiser, gaussian, samples[which], sigmas, given, seed=seed, **options
            )
            return pair[0].losses, pair[1].losses

        model[rows], law[rows] = losses(rows)
        if trained:
            other = parts[(number + 1) % folds]  # each sample is looked at once as a trained one
            seen[other] = losses(other)[0]
    curves = [LossCurve(sigmas, each, drawn) for each in (model, law, seen)]
    return Losses(curves[0], curves[1], curves[2] if trained else None)


@dataclass(frozen=True)
class Horizon:
    """What the certificate says.

    Standard errors are of the samples it was measured on, by bootstrap; they do not know how
    another training would have ended.

    Attributes:
        best: T_opt, where J is least; noise level in data units.
        sufficient: T_eps, the smallest T with J within `tolerance` of its minimum.
        gain: J of the reference alone less the least J, nats per sample; not below 0. A model
            whose gain is clear of 0 is worth distilling.
        crossings: Levels where the model's loss crosses the reference's, by levels where their
            difference is more than two standard errors.
        memorization_gap: Integral over all levels of the model's loss on samples it was not trained
            on less that on samples it was, nats; None where none is known.
        tolerance: Nats.
        sigmas: (K,) the levels.
        nats: (K,) J(T) - J(e).
        stderr: (K,) its standard error.
    """

    best: Estimate
    sufficient: Estimate
    gain: Estimate
    crossings: tuple[float, ...]
    memorization_gap: Estimate | None
    tolerance: float
    sigmas: Tensor
    nats: Tensor
    stderr: Tensor

    @property
    def collapsed(self) -> bool:
        """Whether the reference alone is better than the model started anywhere."""
        return self.best.value == self.sigmas[0].item()

    @property
    def unbounded(self) -> bool:
        """Whether J still falls at the highest level."""
        return self.best.value == self.sigmas[-1].item()


def horizon(losses: Losses, tolerance: float = 0.02, seed: int = 0) -> Horizon:
    """Read the certificate off measured losses.

    Args:
        losses: What `cross_fitted` gives.
        tolerance: Nats per sample that the sufficient T may cost.
        seed: Of the bootstrap.

    Raises:
        InstilError: The tolerance is not positive, or the losses are not of the same samples.
    """
    if not 0 < tolerance < math.inf:
        raise InstilError(f"tolerance {tolerance:g}: expected a positive number of nats")
    gap = loss_gap(losses.model, losses.reference)
    count = len(gap.losses)
    drawn = Draws.of_range(seed, 0, 0, RESAMPLES).integers("bootstrap", count, (count,))
    shares = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    shares.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64))
    found = _minima(gap.mean()[None], gap.sigmas, tolerance)
    spread = _minima(shares @ gap.losses, gap.sigmas, tolerance)
    best, sufficient, gain = (
        Estimate(value.item(), (values - value).std().item())
        for value, values in zip(found, spread, strict=True)
    )
    nats, stderr = torch.zeros(2, len(gap.sigmas), dtype=torch.float64)
    for k, level in enumerate(gap.sigmas.tolist()[1:], start=1):
        upto = Estimate.of(contributions(gap, high=level))
        nats[k], stderr[k] = upto.value, upto.stderr
    memorized = None if losses.seen is None else _difference(losses.model, losses.seen)
    return Horizon(
        best, sufficient, gain, crossings(gap), memorized, tolerance, gap.sigmas, nats, stderr
    )


def _difference(unseen: LossCurve, seen: LossCurve) -> Estimate:
    """The integral of one curve less that of the other, by pairs where the samples are the same."""
    if unseen.drawn == seen.drawn:
        return Estimate.of(contributions(loss_gap(unseen, seen)))
    one, two = Estimate.of(contributions(unseen)), Estimate.of(contributions(seen))
    return Estimate(one.value - two.value, math.hypot(one.stderr, two.stderr))


def _minima(gaps: Tensor, sigmas: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """T_opt, T_eps and the gain, each (B,), of mean gaps (B, K)."""
    size = (len(sigmas) - 1) * FINE + 1
    position, integrand = (
        interpolate(each[:, None], size, mode="linear", align_corners=True)[:, 0]
        for each in (sigmas.log()[None], gaps / sigmas**2)
    )
    steps = position.diff() * (integrand[:, 1:] + integrand[:, :-1]) / 2
    nats = torch.cat([torch.zeros(len(gaps), 1).double(), steps.cumsum(1)], dim=1)
    least, where = nats.min(1)
    first = (nats <= least[:, None] + tolerance).double().argmax(1)
    levels = position[0].exp()
    levels[0], levels[-1] = sigmas[0], sigmas[-1]
    return levels[where], levels[first], 0 - least


def crossings(gap: LossCurve) -> tuple[float, ...]:
    """Noise levels where a mean gap changes sign, between levels where it is clear of zero."""
    integrand, noise = gap.mean() / gap.sigmas**2, 2 * gap.stderr() / gap.sigmas**2
    clear = (integrand.abs() > noise).nonzero()[:, 0]
    x, y = gap.sigmas[clear].log(), integrand[clear]
    turns = (y[1:] * y[:-1] < 0).nonzero()[:, 0]
    share = y[turns] / (y[turns] - y[turns + 1])
    return tuple((x[turns] + share * (x[turns + 1] - x[turns])).exp().tolist())
