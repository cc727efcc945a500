"""Gauges of a run under way, in meaningful units, and warnings when something looks wrong.

The losses of this method do not measure success: the student's loss compares two networks that both
change, and the fake score's is a denoising loss on samples that change. Gauges use fresh samples x
of the student, the instructor's denoiser D, the fake score's F, and F*, the posterior mean of the
student's own distribution. Two identities of `eval.curves` relate them:

    (1)  mse_D - mse_F = E|D - F|^2                                  where F = F*
    (2)  KL(student_s || instructor_s) = integral over u > s of (mse_D - mse_F*) u^-3 du

The right side of (1) is the distance of the two denoisers. Its left side, integrated as in (2), is
a lower estimate of the divergence from student to instructor, in nats per sample. `tracked`, the
left side over the right, is 1 when the fake score has converged. If the fake score has covered a
fraction a of the way from D to F*, that is F = D + a (F* - D), then tracked = 2 / a - 1. The gauges
report a = 2 / (1 + tracked), from integrals over all levels because single levels are noisy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from eval.curves import (
    Estimate,
    LossCurve,
    denoising_loss_curve,
    integrate_gap,
    loss_gap,
    noise_levels,
    noised_losses,
    square,
)
from eval.quality.evaluator import QUICK_SEEDS
from instil.base.draws import Draws
from instil.base.shapes import expand
from instructors.conditions.prior import Prior
from instructors.denoiser import Condition, Denoiser
from students.student import Student

LOWEST, HIGHEST, PER_DECADE = 0.1, 20.0, 4
# Warnings: a spread below, a shift above these fractions of the instructor's spread; a fake score
# that has covered less than this fraction of its way; as many equal measurements in a row.
COLLAPSED, DRIFTED, LAGGING, REPEATS = 0.5, 0.5, 0.5, 3
PANELS = (0.3, 1.0, 3.0)  # noise levels, data units


@dataclass(frozen=True)
class Gauges:
    """Measurements of the networks at one step.

    Attributes:
        sigmas: (K,) noise levels, data units.
        distance: (K,) root mean square difference of the two denoisers, per coordinate.
        tracked: (K,) the left side of (1) over its right side; 1 for a converged fake score.
        nats: The integral of (2) from the lowest level on, nats per sample.
        way: The fraction of the way from the instructor's denoiser to the student's posterior mean
            that the fake score has covered; None where it moved nowhere, or elsewhere.
    """

    sigmas: tuple[float, ...]
    distance: tuple[float, ...]
    tracked: tuple[float, ...]
    nats: Estimate
    way: float | None

    def record(self) -> dict[str, Any]:
        """The gauges as JSON values, for `metrics.jsonl`."""
        return asdict(self)


@torch.no_grad()
def fresh_samples(
    student: Student, prior: Prior, count: int, batch: int, device: torch.device
) -> tuple[Tensor, Condition]:
    """Samples (count, *shape) of the student that no training step saw, and their conditions."""
    prior, training, parts = prior.to(device), student.training, []
    student.eval()
    for start in range(QUICK_SEEDS, QUICK_SEEDS + count, batch):
        draws = Draws.of_range(0, 0, start, min(batch, QUICK_SEEDS + count - start), device)
        condition = prior.at(draws.index)
        parts.append((student(student.prior(draws), condition), condition))
    student.train(training)
    samples, conditions = zip(*parts, strict=True)
    return torch.cat(samples), Condition.cat(conditions)


def gauge(
    samples: Tensor,
    condition: Condition,
    instructor: Denoiser,
    fake: Denoiser,
    batch: int = 64,
) -> Gauges:
    """Compare instructor and fake on samples of the student, level by level.

    Args:
        samples: (N, *shape) on the networks' device.
        condition: The condition of each sample.
        instructor: The denoiser D.
        fake: The fake score's denoiser F.
        batch: Samples denoised at once.
    """
    low, high = max(LOWEST, instructor.sigma_min), min(HIGHEST, instructor.sigma_max)
    levels = instructor.round_sigma(noise_levels(low, high, PER_DECADE)).unique()
    options: dict[str, Any] = {
        "condition": condition,
        "noise_draws": 1,
        "seed": 0,
        "batch": batch,
        "device": samples.device,
    }
    ours, theirs = (
        denoising_loss_curve(each, samples, levels, **options) for each in (fake, instructor)
    )
    squares = noised_losses(
        lambda _, noisy, sigma, given: square(
            fake(noisy, sigma, given), instructor(noisy, sigma, given)
        ),
        samples,
        levels,
        label=None,
        **options,
    )
    gap = loss_gap(theirs, ours)
    distance = LossCurve(gap.sigmas, squares, gap.drawn)
    apart, size = distance.mean(), samples[0].numel()
    nats, whole = integrate_gap(gap), integrate_gap(distance).value
    return Gauges(
        tuple(levels.tolist()),
        tuple((apart / size).sqrt().tolist()),
        tuple((gap.mean() / apart.clamp(min=1e-12)).tolist()),
        nats,
        2 * whole / (whole + nats.value) if whole > max(0.0, -nats.value) else None,
    )


@torch.no_grad()
def panels(
    samples: Tensor, condition: Condition, instructor: Denoiser, fake: Denoiser
) -> list[Tensor]:
    """The student's samples, noised and denoised by both networks.

    Args:
        samples: (N, *shape).
        condition: The condition of each sample.
        instructor: The denoiser D.
        fake: The fake score's denoiser F.

    Returns:
        Samples, noisy samples, their D and their F, each (3 N, *shape): one block of N per noise
        level, from low to high. Noisy samples are scaled to the range of the samples.
    """
    rows: list[tuple[Tensor, ...]] = []
    draws = Draws.of_range(0, 0, 0, len(samples), samples.device)
    noise = draws.normal("panel", tuple(samples.shape[1:]), samples.dtype)
    for level in PANELS:
        sigma = instructor.round_sigma(samples.new_full((len(samples),), level))
        noisy = samples + expand(sigma, samples) * noise
        denoised = (each(noisy, sigma, condition) for each in (instructor, fake))
        rows.append((samples, noisy / (1 + expand(sigma, noisy) ** 2).sqrt(), *denoised))
    return [torch.cat(each) for each in zip(*rows, strict=True)]


def warnings_of(
    student: Tensor,
    instructor: Tensor,
    distances: Sequence[Mapping[str, float]] = (),
    gauges: Gauges | None = None,
) -> list[str]:
    """Warnings of collapse, drift, standstill and lag, with a remedy each; often none.

    Args:
        student: (N, C, H, W) uint8, the student's images.
        instructor: (N, C, H, W) uint8, the instructor's images of the same seeds.
        distances: The measurements of the run so far, by average.
        gauges: The gauges of the same step.
    """
    ours, theirs = student.float(), instructor.float()
    spread, wanted = ours.std(0).mean().item(), theirs.std(0).mean().item()
    shift = (ours.mean(0) - theirs.mean(0)).mean().abs().item()
    warnings = []
    if spread < COLLAPSED * wanted:
        warnings.append(
            f"collapse: the student's images spread by {spread:.3g} grey levels, the instructor's "
            f"by {wanted:.3g}; try a lower optimizer.lr, more fake.updates, or divergence=dmd"
        )
    if shift > DRIFTED * wanted:
        warnings.append(
            f"drift: the student's images are {shift:.3g} grey levels off in the mean, with a "
            f"spread of {wanted:.3g}; try a lower optimizer.lr or a higher levels.sigma_max"
        )
    last = list(distances)[-REPEATS:]
    if len(last) == REPEATS and all(each == last[0] for each in last):
        warnings.append(
            f"standstill: {REPEATS} measurements in a row are the same; try a higher optimizer.lr"
        )
    if gauges and (lag := _lag(gauges)):
        warnings.append(f"lag: the fake score {lag}")
    return warnings


def _lag(gauges: Gauges) -> str | None:
    remedy = "try a higher fake.optimizer.lr, more fake.updates, or a higher levels.sigma_max"
    if not gauges.nats.clear:
        return None
    if gauges.nats.value < 0:
        return (
            "denoises the student's samples worse than the instructor does; expected once the "
            f"student matches the instructor, otherwise {remedy}"
        )
    if gauges.way is not None and gauges.way < LAGGING:
        return (
            f"has gone {gauges.way:.0%} of the way from the instructor to the student's samples; "
            f"{remedy}"
        )
    return None
