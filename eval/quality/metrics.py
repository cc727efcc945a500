"""Distances between sets of images: a strict, typed front of torch-fidelity."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from eval.quality.features import Extractor
from instil.base.data import Images, load
from instil.base.data.files import read_arrays
from instil.base.errors import InstilError
from instil.base.processes import on_main
from instil.base.untrusted import is_file

Statistics = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scale:
    """The z-scoring of offline features by the reference, with its dead units dropped.

    Attributes:
        mean: (d,).
        std: (d,), over the units in `alive`.
        alive: (d,) bool, units that vary over the reference.
    """

    mean: Tensor
    std: Tensor
    alive: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, d) to (N, number of living units)."""
        return ((features - self.mean) / self.std)[:, self.alive]


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, in the features of one extractor.

    Attributes:
        name: Its description and a digest of its contents.
        extractor: The extractor.
        scale: How features are z-scored; None for FID.
        statistics: Mean `mu` and covariance `sigma` of the features.
        features: (N, d), or None where only statistics are known.
        images: The images themselves, or None.
        histogram: (K,) share of each class, as the extractor sees it; or None.
    """

    name: str
    extractor: Extractor
    scale: Scale | None
    statistics: Statistics
    features: Tensor | None = None
    images: Images | None = None
    histogram: Tensor | None = None


def reference_of(images: Images, extractor: Extractor) -> Reference:
    """Make a reference of images.

    Raises:
        InstilError: Fewer than two images.
    """
    if len(images) < 2:
        raise InstilError(
            f"{images.source}: a reference needs at least 2 images, got {len(images)}"
        )
    features, logits = extractor(images.pixels)
    scale = None
    if extractor.standardize:
        std = features.std(0)
        scale = Scale(features.mean(0), std, std > 1e-3 * std.max())
        features = scale(features)
    return Reference(
        f"{images.source} ({len(images)} images, {images.digest()})",
        extractor,
        scale,
        _statistics(features),
        features,
        images,
        _histogram(logits),
    )


def reference_of_statistics(path: Path, extractor: Extractor) -> Reference:
    """A reference of a `.npz` with `mu` and `sigma`, as EDM and StyleGAN publish them for FID.

    Raises:
        InstilError: The arrays are missing or misshapen, or the extractor is not Inception.
    """
    if extractor.standardize:
        raise InstilError(
            f"{path}: published statistics are Inception's, so they need --extractor inception, "
            f"not {extractor.name}"
        )
    arrays = read_arrays(path, ("mu", "sigma"))
    try:
        mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    except (KeyError, ValueError, TypeError) as error:
        raise InstilError(f"{path}: expected arrays mu and sigma ({error})") from None
    if mu.shape != (2048,) or sigma.shape != (2048, 2048):
        raise InstilError(
            f"{path}: expected mu (2048,) and sigma (2048, 2048), got {mu.shape} and {sigma.shape}"
        )
    return Reference(str(path), extractor, None, {"mu": mu, "sigma": sigma})


def load_reference(source: str, extractor: Extractor) -> Reference:
    """A reference: images, a file of statistics, or a name that torch-fidelity knows.

    Raises:
        InstilError: Nothing of the kind, or it cannot be read.
    """
    if source in torch_fidelity.registry.DATASETS_REGISTRY:
        return reference_of(_registered(source), extractor)
    path = Path(source)
    if path.suffix == ".npz" and is_file(path) and len(read_arrays(path, ("mu", "sigma"))) == 2:
        return reference_of_statistics(path, extractor)
    return reference_of(load(source), extractor)


def _registered(name: str) -> Images:
    """A data set registered with torch-fidelity, such as cifar10-train; it downloads it."""
    make = torch_fidelity.registry.DATASETS_REGISTRY[name]
    root = os.environ.get("INSTIL_DATA", "data")
    try:
        images = make(root, True)
        return Images(torch.stack([images[i] for i in range(len(images))]), None, (), name)
    except (RuntimeError, OSError) as error:
        raise InstilError(
            f"{name}: not below {root} and could not be downloaded ({error}); "
            "set INSTIL_DATA to the folder that holds it"
        ) from None


def distance(pixels: Tensor, reference: Reference) -> float:
    """Fréchet distance of images (N, C, H, W) uint8 to a reference."""
    features, _ = reference.extractor(pixels)
    features = reference.scale(features) if reference.scale else features
    return on_main(lambda: frechet(_statistics(features), reference.statistics))


def measure(pixels: Tensor, reference: Reference, labels: Tensor | None = None) -> dict[str, float]:
    """Compare generated images with a reference.

    Args:
        pixels: (N, C, H, W) uint8.
        reference: With its extractor.
        labels: (N,) int64 the images were conditioned on; for `label_accuracy`.

    Returns:
        fd: Fréchet distance (FID if the extractor is Inception).
        inception_score: Only with Inception.
        kid, precision, recall: On the first min(N, N_reference) images of either, since both of the
            latter depend on the numbers; missing where the reference is only statistics.
        class_tv: Total variation between the class histograms.
        label_accuracy: Share of images the extractor puts into the class asked for.
        copies: Share of images that repeat a reference image (`copy_rate`).
    """
    features, logits = reference.extractor(pixels)
    return on_main(lambda: _figures(pixels, features, logits, reference, labels))


def _figures(
    pixels: Tensor,
    features: Tensor,
    logits: Tensor,
    reference: Reference,
    labels: Tensor | None,
) -> dict[str, float]:
    features = reference.scale(features) if reference.scale else features
    result = {"fd": frechet(_statistics(features), reference.statistics)}
    if not reference.extractor.standardize:
        score = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
        result["inception_score"] = float(score["inception_score_mean"])
    if reference.features is not None:
        count = min(len(features), len(reference.features))
        mine, theirs = features[:count], reference.features[:count]
        kid = kid_features_to_metric(mine, theirs, kid_subset_size=min(1000, count), verbose=False)
        prc = prc_features_to_metric(mine, theirs, save_cpu_ram=True, verbose=False)
        result["kid"] = float(kid["kernel_inception_distance_mean"])
        result |= {key: float(prc[key]) for key in ("precision", "recall")}
    if reference.histogram is not None and reference.extractor.standardize:
        gap = _histogram(logits) - reference.histogram
        result["class_tv"] = 0.5 * gap.abs().sum().item()
        if labels is not None:
            result["label_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
    if reference.images is not None:
        result["copies"] = copy_rate(pixels, reference.images.pixels)
    return result


def frechet(first: Statistics, second: Statistics) -> float:
    """Fréchet distance between two Gaussians given by their statistics."""
    metric = fid_statistics_to_metric(first, second, verbose=False)
    return float(metric["frechet_inception_distance"])


def copy_rate(pixels: Tensor, training: Tensor) -> float:
    """Share of images that repeat a training image.

    An image is a copy if its distance to the nearest training image is less than a third of that to
    the second nearest (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail
    to memorize").

    Args:
        pixels: (N, C, H, W) uint8.
        training: (M, C, H, W) uint8, M at least 2; repeated images count once.
    """
    theirs = training.flatten(1).unique(dim=0).float()
    copies = 0
    for part in pixels.flatten(1).float().split(1000):
        # "donot_use_mm": the matrix-product form turns a distance of zero into a rounding error.
        mode = "donot_use_mm_for_euclid_dist"
        nearest = torch.cdist(part, theirs, compute_mode=mode).topk(2, largest=False).values
        copies += int((nearest[:, 0] < nearest[:, 1] / 3).sum())
    return copies / len(pixels)


def spread(values: list[dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Each figure's mean and standard deviation over measurements on `count` images each."""
    return {
        key: {
            "mean": float(np.mean([v[key] for v in values])),
            "std": float(np.std([v[key] for v in values], ddof=1)) if len(values) > 1 else 0.0,
            "n": count,
            "seeds": len(values),
        }
        for key in values[0]
    }


def _statistics(features: Tensor) -> Statistics:
    found: dict[str, Any] = fid_features_to_statistics(features.double())
    return found


def _histogram(logits: Tensor) -> Tensor:
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double() / len(logits)
