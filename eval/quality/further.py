"""What one set of images says beyond its distance: error, bias, density, coverage, classes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.quality.extraction import Features
from eval.quality.metrics import Reference, Statistics, frechet, statistics
from eval.quality.sources import Source
from instil.base.runs.monitor import note

GROUPS = 10  # of the jackknife
NEIGHBOURS = 5  # of density and coverage, as Naeem et al. have them


def further(features: Features, reference: Reference, source: Source) -> dict[str, Any]:
    """Facts of one set of images beside `metrics.figures`.

    Returns:
        fd_stderr: Standard error of the distance over draws of the images, the reference fixed.
        fd_infinity: The distance without its bias of order 1/N, as on infinitely many images.
        density, coverage: Naeem et al. 2020, arXiv 2002.09797; only where the reference is images.
        per_class: Distance of each class to the reference's class of the same name.
    """
    values = reference.scale(features.values) if reference.scale else features.values
    count, size = values.shape
    if count <= size:
        note(
            f"{source.name}: {count} images and {size} features, so the covariance is singular and "
            f"the distance far too large; take more than {size} images, or compare the KID"
        )
    facts: dict[str, Any] = {}
    if count >= 2 * GROUPS:
        stderr, infinity = jackknife(values, reference.statistics)
        facts |= {"fd_stderr": stderr, "fd_infinity": _figure(infinity, count)}
    if reference.values is not None:
        few = min(count, len(reference.values))
        density, coverage = density_and_coverage(values[:few], reference.values[:few])
        facts |= {"density": _figure(density, few), "coverage": _figure(coverage, few)}
    return facts | per_class(values, reference, source)


def per_class(values: Tensor, reference: Reference, source: Source) -> dict[str, Any]:
    """Distance of each class of a source to the reference's class of the same name."""
    if source.labels is None or reference.labels is None or reference.values is None:
        return {}
    facts = {}
    for number, name in enumerate(source.classes):
        if name in reference.classes:
            mine = values[source.labels == number]
            theirs = reference.values[reference.labels == reference.classes.index(name)]
            if min(len(mine), len(theirs)) > 1:
                distance = frechet(statistics(mine), statistics(theirs))
                facts[f"class {name}"] = _figure(distance, len(mine))
    return facts


def jackknife(values: Tensor, reference: Statistics, groups: int = GROUPS) -> tuple[float, float]:
    """Standard error of a Fréchet distance, and its value without the bias of order 1/N.

    Each of `groups` groups of images is left out in turn. A bootstrap would draw images twice and
    thereby add the very bias that is removed here.

    Args:
        values: (N, d) features of the images.
        reference: Mean and covariance, taken as they are.
        groups: Number of groups; image k is in group k modulo `groups`.

    Source:
        Miller 1974, "The jackknife: a review"; the bias is that of Chong & Forsyth 2020,
        arXiv 1911.07023.
    """
    mean, count = values.mean(0, dtype=torch.float64), len(values)
    target, scales = torch.from_numpy(reference["mu"]), torch.from_numpy(reference["sigma"])
    levels, axes = torch.linalg.eigh(scales)
    root = (axes * levels.clamp(min=0).sqrt()) @ axes.mT

    def distance(total: Tensor, scatter: Tensor, number: int) -> float:
        shift = total / number
        covariance = (scatter - number * torch.outer(shift, shift)) / (number - 1)
        shared = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
        gap = (mean + shift - target).square().sum()
        return (gap + covariance.trace() + scales.trace() - 2 * shared).item()

    def moments(part: Tensor) -> tuple[Tensor, Tensor]:
        blocks = [block.double() - mean for block in part.split(4096)]
        total = torch.stack([block.sum(0) for block in blocks]).sum(0)
        return total, sum((block.mT @ block for block in blocks), torch.zeros(()))

    total, scatter = moments(values)
    whole, without = distance(total, scatter, count), []
    for group in range(groups):
        left_out = values[group::groups]
        part, spread = moments(left_out)
        without.append(distance(total - part, scatter - spread, count - len(left_out)))
    error = np.sqrt((groups - 1) * np.var(without))
    return float(error), float(groups * whole - (groups - 1) * np.mean(without))


def density_and_coverage(values: Tensor, reference: Tensor) -> tuple[float, float]:
    """How densely images lie where the reference's do, and the share of those with an image near.

    Args:
        values: (N, d) features of the images.
        reference: (N, d) those of the reference.
    """
    neighbours = min(NEIGHBOURS, len(reference) - 1)
    within, covered = 0, 0
    for part in reference.split(1024):
        radii = torch.cdist(part, reference).kthvalue(neighbours + 1).values
        inside = torch.cdist(part, values) < radii[:, None]
        within += int(inside.sum())
        covered += int(inside.any(1).sum())
    return within / (neighbours * len(values)), covered / len(reference)


def _figure(value: float, count: int) -> dict[str, float]:
    return {"mean": value, "std": 0.0, "n": count, "seeds": 1}
