"""Denoising losses of models on images they were not trained on, fold by fold."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eval.curves import (
    LossCurve,
    denoising_loss_curve,
    gaussian_loss_curve,
    loss_gap,
)
from eval.image_sets import check_samples, digest
from eval.questions import Reference
from instil.base.data import floats
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.analytic import Mixture, empirical, fit_gaussian
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser


def reference_law(kind: Reference, samples: Tensor) -> Mixture:
    """The Gaussian a diffusion would start from, as a law of the data, float64.

    Args:
        kind: Mean and covariance: those of the samples, zero, or those of N(0, I).
        samples: (N, *shape), the model's training samples; uint8 images become [-1, 1].
    """
    if kind == "gaussian":
        return fit_gaussian(floats(samples))
    atom = torch.zeros(1, *samples.shape[1:], dtype=torch.float64)
    return empirical(atom, bandwidth=float(kind == "standard"))


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
        model: Model that was not trained on the samples.
        reference: Law of one component.
        samples: (N, *shape).
        sigmas: (K,) noise levels.
        condition: Condition of all N samples.
        options: Keywords of `denoising_loss_curve`: noise_draws, seed, batch, device, label.

    Raises:
        InstilError: As `denoising_loss_curve`.
    """
    drawn = denoising_loss_curve(model, samples, sigmas, condition=condition, **options)
    law = copy.deepcopy(reference).to(options.get("device", "cpu"))
    baseline = denoising_loss_curve(law, samples, sigmas, **options | {"label": None})
    exact = gaussian_loss_curve(reference, samples, sigmas)
    return replace(exact, losses=loss_gap(drawn, baseline).losses + exact.losses), exact


@dataclass(frozen=True)
class Losses:
    """Losses of a model on samples; every curve has one row per sample.

    Attributes:
        model: Loss of a model that was fitted without the sample.
        reference: Loss of a reference that was fitted without the sample.
        seen: Loss of a model on samples that it was fitted to; None where none are known.
    """

    model: LossCurve
    reference: LossCurve
    seen: LossCurve | None = None


def folds_of(count: int, folds: int, seed: int = 0, strata: Tensor | None = None) -> list[Tensor]:
    """Row numbers of each fold: a random partition of `count` samples into nearly equal parts.

    Args:
        count: Number of samples.
        folds: Number of parts.
        seed: Seed of the partition.
        strata: (count,) class of each sample; every part gets its share of each class.

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
        fit: Function from the row numbers of training samples to a model.
        samples: (N, *shape), all samples.
        sigmas: (K,) noise levels.
        reference: Kind of the reference, fitted to the same rows as the model.
        folds: Number of folds; each is left out once.
        trained: Whether `fit` trains on the rows. With False the model was trained elsewhere, on
            other samples: only the reference is cross-fitted, and nothing is `seen`.
        condition: Condition of all N samples.
        strata: (N,) class of each sample; every fold gets its share of each class.
        seed: Seed of folds and noise.
        options: Keywords of `denoising_loss_curve`.

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
