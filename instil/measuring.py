"""`instil.fid`: a distance between images, or models, and a reference."""

from pathlib import Path

import torch
from torch import Tensor, nn

from eval.quality import features, metrics
from eval.quality.evaluator import REFERENCE_SEEDS
from eval.quality.images import generate, instructor_sampler, student_sampler
from instil.base import data
from instil.base.errors import InstilError
from instructors.instructor import Instructor
from students.student import Student

Picturable = str | Path | data.Images | Tensor | Student | Instructor


class Distance(float):
    """A Fréchet distance that knows what it is called.

    Attributes:
        name: `FID`, or `FD-<extractor>-<hash of its weights>`.
    """

    name: str

    def __repr__(self) -> str:
        return f"{self.name} {float(self):.4g}"


def fid(
    images: Picturable,
    reference: Picturable,
    extractor: str | features.Extractor | nn.Module = "inception",
    samples: int = 10_000,
    batch: int = 250,
) -> Distance:
    """Compare images with a reference by the Fréchet distance of their features.

    Args:
        images: A folder, `.zip`, `.npz` or data set's name; a tensor (N, C, H, W), uint8 or float
            in [-1, 1]; or a model, which is sampled: an instructor by 18 Heun steps.
        reference: The same, a `.npz` of statistics, or a name that torch-fidelity knows.
        extractor: `inception`, an embedded name, a file, `package.module:Class`, or a module that
            maps images (B, C, H, W) in [-1, 1] to features and logits.
        samples: Images drawn from a model.
        batch: Images drawn at once.

    Returns:
        A float; called FID only with Inception, see `Distance.name`.

    Raises:
        InstilError: Images or extractor cannot be read, or do not fit each other.
    """
    extractor = extractor_of(extractor)
    if isinstance(reference, str | Path):
        compared = metrics.load_reference(str(reference), extractor)
    else:
        made = _images(reference, REFERENCE_SEEDS, samples, batch)
        compared = metrics.reference_of(made, extractor)
    distance = Distance(metrics.distance(_images(images, 0, samples, batch).pixels, compared))
    distance.name = extractor.name
    return distance


def _images(source: Picturable, start: int, count: int, batch: int) -> data.Images:
    if isinstance(source, data.Images):
        return source
    if isinstance(source, str | Path):
        return data.load(str(source))
    if isinstance(source, Tensor):
        return data.Images(_pixels(source), None, (), "a tensor")
    if isinstance(source, Student):
        sampler, module = student_sampler(source), source
    else:
        module = source.denoiser
        sampler = instructor_sampler(module, 18, source.prior, source.codec)
    device = next(module.parameters()).device
    pixels = generate(sampler, start, count, device, batch)
    return data.Images(pixels, None, (), f"samples of a {type(module).__name__}")


def _pixels(images: Tensor) -> Tensor:
    if images.dim() != 4:
        raise InstilError(f"images {tuple(images.shape)}: expected a tensor (N, C, H, W)")
    if images.dtype == torch.uint8:
        return images.cpu()
    if not images.is_floating_point() or images.min() >= 0:
        raise InstilError(
            f"images {images.dtype} from {images.min():g} to {images.max():g}: expected uint8, or "
            "floats in [-1, 1]; images in [0, 1] become such by 2 * images - 1"
        )
    return data.to_uint8(images).cpu()


def extractor_of(source: str | features.Extractor | nn.Module) -> features.Extractor:
    """The extractor that an argument means."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(source, str):
        return features.load(source, device=device)
    return features.of_network(source, device) if isinstance(source, nn.Module) else source
