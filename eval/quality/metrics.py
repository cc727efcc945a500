"""Distances between sets of images: a strict, typed front of torch-fidelity."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from eval.image_sets import distinct
from eval.quality import sources
from eval.quality.extraction import Features, extract, kept
from eval.quality.extractor import Extractor
from eval.quality.sources import Source, of_images
from instil.base.data import Images
from instil.base.data.files import read_arrays
from instil.base.errors import InstilError
from instil.base.files import replacing
from instil.base.processes import on_main
from instil.base.runs.monitor import note
from instil.base.untrusted import is_file

Statistics = dict[str, np.ndarray]
CANDIDATES = 8  # nearest training images whose distances are computed exactly


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
        values: (N, d) features after scaling, or None where only statistics are known.
        images: What stays of the images, or None.
        histogram: (K,) share of each class, as the extractor sees it; or None.
        labels: (N,) int64 classes of the images, or None.
        classes: Name of each class.
    """

    name: str
    extractor: Extractor
    scale: Scale | None
    statistics: Statistics
    values: Tensor | None = None
    images: Features | None = None
    histogram: Tensor | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()


def reference_of(images: Images | Tensor | Source, extractor: Extractor) -> Reference:
    """Make a reference of images.

    Raises:
        InstilError: Fewer than two images.
    """
    source = images if isinstance(images, Source) else of_images(images)
    (features,) = extract(source, [extractor])
    return reference_of_features(features, source.name, extractor)


def reference_of_features(features: Features, name: str, extractor: Extractor) -> Reference:
    """Make a reference of images whose features are known.

    Raises:
        InstilError: Fewer than two images.
    """
    if len(features) < 2:
        raise InstilError(f"{name}: a reference needs at least 2 images, got {len(features)}")
    scale, values = None, features.values
    if extractor.standardize:
        std = values.std(0)
        scale = Scale(values.mean(0), std, std > 1e-3 * std.max())
        values = scale(values)
    return Reference(
        f"{name} ({len(features)} images, {features.digest})",
        extractor,
        scale,
        statistics(values),
        values,
        features,
        _histogram(features.logits) if features.logits.shape[1] else None,
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
    arrays = read_arrays(path, ("mu", "sigma", "protocol"))
    asked = extractor.protocol
    if "protocol" in arrays:
        made = str(arrays["protocol"])
        if made != asked:
            raise InstilError(f"{path}: made with --protocol {made}, not {asked}; give that one")
    else:
        note(
            f"{path}: does not say how images were resized; taken as {asked}. Of pytorch-fid or "
            "clean-fid it needs --protocol pytorch-fid or clean"
        )
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
    read = partial(sources.load, colour=extractor.colour, mixed=extractor.mixed)
    return load_references(source, [extractor], read)[0]


def load_references(
    source: str, extractors: Sequence[Extractor], read: Callable[[str], Source]
) -> list[Reference]:
    """A reference per extractor, by one pass through the images.

    Features by extractors with an `identity` are kept in the user's cache, by the images' content.

    Args:
        source: Images, a file of statistics, or a name that torch-fidelity knows.
        extractors: What extracts the features.
        read: Makes a source of a description.

    Raises:
        InstilError: Nothing of the kind, or it cannot be read.
    """
    path = Path(source)
    if path.suffix == ".npz" and is_file(path) and len(read_arrays(path, ("mu", "sigma"))) == 2:
        return [reference_of_statistics(path, extractor) for extractor in extractors]
    known = source in torch_fidelity.registry.DATASETS_REGISTRY
    images = _registered(source) if known else read(source)
    if len(extractors) == 1 and extractors[0].identity and images.digest:
        key = hashlib.sha256(f"{images.digest()} {extractors[0].identity}".encode()).hexdigest()[
            :16
        ]
        found = [kept(key, lambda: extract(images, extractors)[0])]
    else:
        found = extract(images, extractors)
    about = {"labels": images.labels, "classes": images.classes}
    return [
        replace(reference_of_features(each, images.name, extractor), **about)
        for each, extractor in zip(found, extractors, strict=True)
    ]


def save_statistics(reference: Reference, path: Path) -> None:
    """Write mean and covariance with the protocol of their extractor."""
    with replacing(path) as partly, partly.open("wb") as file:
        arrays = reference.statistics | {"protocol": np.array(reference.extractor.protocol)}
        np.savez(file, allow_pickle=False, **arrays)


def _registered(name: str) -> Source:
    """A data set registered with torch-fidelity, such as cifar10-train; it downloads it."""
    make = torch_fidelity.registry.DATASETS_REGISTRY[name]
    root = os.environ.get("INSTIL_DATA", "data")
    try:
        images = make(root, True)
    except (RuntimeError, OSError) as error:
        raise InstilError(
            f"{name}: not below {root} and could not be downloaded ({error}); "
            "set INSTIL_DATA to the folder that holds it"
        ) from None

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        return (torch.stack([images[number] for number in part]) for part in parts)

    return Source(name, len(images), read)


def distance(images: Images | Tensor | Source, reference: Reference) -> float:
    """Fréchet distance of images to a reference."""
    source = images if isinstance(images, Source) else of_images(images)
    (features,) = extract(source, [reference.extractor])
    return distance_of(features.values, reference)


def distance_of(values: Tensor, reference: Reference) -> float:
    """Fréchet distance of images with the features (N, d) to a reference."""
    values = reference.scale(values) if reference.scale else values
    return on_main(lambda: frechet(statistics(values), reference.statistics))


def measure(
    images: Images | Tensor | Source, reference: Reference, labels: Tensor | None = None
) -> dict[str, float]:
    """Compare generated images with a reference; see `figures`."""
    source = images if isinstance(images, Source) else of_images(images)
    (features,) = extract(source, [reference.extractor])
    return figures(features, reference, labels)


def figures(
    features: Features, reference: Reference, labels: Tensor | None = None
) -> dict[str, float]:
    """Compare generated images with a reference.

    Args:
        features: Those of the N images.
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
    return on_main(lambda: _figures(features, reference, labels))


def _figures(features: Features, reference: Reference, labels: Tensor | None) -> dict[str, float]:
    values = reference.scale(features.values) if reference.scale else features.values
    logits = features.logits
    result = {"fd": frechet(statistics(values), reference.statistics)}
    if logits.shape[1] and not reference.extractor.standardize:
        score = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
        result["inception_score"] = float(score["inception_score_mean"])
    if reference.values is not None:
        count = min(len(values), len(reference.values))
        mine, theirs = values[:count], reference.values[:count]
        kid = kid_features_to_metric(mine, theirs, kid_subset_size=min(1000, count), verbose=False)
        prc = prc_features_to_metric(
            mine, theirs, save_cpu_ram=True, prc_batch_size=2048, verbose=False
        )
        result["kid"] = float(kid["kernel_inception_distance_mean"])
        result |= {key: float(prc[key]) for key in ("precision", "recall")}
    if reference.histogram is not None and reference.extractor.standardize:
        gap = _histogram(logits) - reference.histogram
        result["class_tv"] = 0.5 * gap.abs().sum().item()
        if labels is not None:
            result["label_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
    if (
        reference.images is not None
        and features.small.shape[1:] == reference.images.small.shape[1:]
    ):
        result["copies"] = copy_rate(features.small, reference.images.small)
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
    theirs = training[distinct(training)].flatten(1).float()
    squares, near = theirs.square().sum(1), min(CANDIDATES, len(theirs))
    copies = 0
    for part in pixels.flatten(1).float().split(1000):
        # Squares by a matrix product are fast and rounded, so the nearest few are computed again.
        rough = squares - 2 * part @ theirs.mT
        rows = rough.topk(near, largest=False).indices
        exact = torch.stack([(part - theirs[row]).double().norm(dim=1) for row in rows.mT], 1)
        nearest = exact.topk(2, largest=False).values
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


def statistics(values: Tensor) -> Statistics:
    """Mean and covariance of features (N, d), summed in float64 over blocks."""
    mean = values.mean(0, dtype=torch.float64)
    blocks = (block.double() - mean for block in values.split(4096))
    scatter = sum((block.mT @ block for block in blocks), torch.zeros(()))
    return {"mu": mean.numpy(), "sigma": (scatter / (len(values) - 1)).numpy()}


def _histogram(logits: Tensor) -> Tensor:
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double() / len(logits)
