"""The horizon of a trained instructor, on images that it was not trained on."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from eval import card
from eval.cross_fitting import Losses, cross_fitted, paired_losses, reference_law
from eval.curves import noise_levels
from eval.horizon.answer import Measured
from eval.image_sets import refuse_shared, some
from eval.questions import LEAST_FOLDS, Horizon
from instil.base import data
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instructors.codec import Codec
from instructors.denoiser import Condition, Denoiser, class_labels, labelled
from instructors.instructor import Instructor
from instructors.load import load
from instructors.sampler import heun


def measure_pretrained(question: Horizon) -> Measured:
    """The horizon of the instructor that `question.model` names.

    Without `question.data` its own samples are measured, which say nothing about memorisation or
    about other data.

    Raises:
        InstilError: Something cannot be loaded or does not fit, images were trained on, or the
            bound is asked for and the training images are unknown.
    """
    source = question.model
    instructor = load_pixels(source)
    denoiser = instructor.denoiser
    low = max(denoiser.sigma_min, question.lowest)
    levels = denoiser.round_sigma(noise_levels(low, denoiser.sigma_max)).unique()
    training, images = _images(question, instructor)
    device = Accelerator().device
    denoiser.to(device)
    if images is None:
        images = _samples(denoiser, source, question, device)
    images = some(images, question.samples, question.seed)
    options: dict[str, Any] = {
        "seed": question.seed,
        "noise_draws": question.draws,
        "device": device,
        "label": f"{source} on {images.source}",
    }
    if training is None or question.data is None:
        losses = cross_fitted(
            lambda rows: denoiser,
            images.pixels,
            levels,
            reference=question.reference,
            folds=LEAST_FOLDS,
            trained=False,
            condition=condition_of(images, denoiser.classes),
            **options,
        )
    else:
        seen = some(training, len(images), question.seed)
        law = reference_law(question.reference, training.pixels)
        pairs = [
            paired_losses(
                denoiser, law, x.pixels, levels, condition_of(x, denoiser.classes), **options
            )
            for x in (images, seen)
        ]
        losses = Losses(*pairs[0], seen=pairs[1][0])
    protocol = f"{source} on {len(images)} images of {images.source}"
    return Measured.of(losses, question, protocol, instructor=instructor, training=training)


def load_pixels(source: str) -> Instructor:
    """An instructor whose horizon can be measured.

    Raises:
        InstilError: It makes latents, or asks for prompts.
    """
    instructor = load(source)
    if instructor.denoiser.text or type(instructor.codec) is not Codec:
        raise InstilError(
            f"{source}: makes latents or asks for prompts, of which no horizon is measured; "
            "give a model of pixels in [-1, 1], with class labels or without"
        )
    return instructor


def condition_of(images: data.Images, classes: int) -> Condition:
    """The classes of images, for a model that has classes."""
    return labelled(images.labels if classes else None)


def _images(
    question: Horizon, instructor: Instructor
) -> tuple[data.Images | None, data.Images | None]:
    """Training images and images to measure, each where there are some, both checked."""
    source = question.model
    named = data.load(question.trained_on) if question.trained_on else None
    training = named or card.training_images(instructor.card.folder)
    images = None if question.data is None else data.load(question.data)
    for each in (images, training):
        if each is not None:
            _check_fit(each, instructor.denoiser, source)
    if question.bound and training is None:
        raise InstilError(
            f"--bound: the training images of {source} are unknown; name them by --trained-on"
        )
    if images is not None and training is not None:
        names = f"--data {question.data}", f"the training images of {source}"
        refuse_shared(images.pixels, training.pixels, *names)
    elif images is not None:
        note(f"{source}: its training images are unknown; --data must hold none of them")
    return training, images


def _check_fit(images: data.Images, denoiser: Denoiser, source: str) -> None:
    if images.shape != denoiser.shape:
        raise InstilError(
            f"{images.source}: images of the shape {images.shape}, {source} makes "
            f"{denoiser.shape}; give images of that shape"
        )
    classes = len(images.classes)
    if denoiser.classes and classes != denoiser.classes:
        raise InstilError(
            f"{images.source}: {classes or 'no'} classes, {source} knows {denoiser.classes}; "
            "give images with the same classes"
        )


def _samples(
    denoiser: Denoiser, source: str, question: Horizon, device: torch.device
) -> data.Images:
    """Samples of the instructor, as images."""
    note(f"{source}: no --data, so its own samples are looked at; memorisation cannot be seen")
    parts: list[Tensor] = []
    for start in range(0, question.samples, 500):
        count = min(500, question.samples - start)
        draws = Draws.of_range(question.seed, 0, start, count, device)
        condition = class_labels(denoiser.classes, draws.index)
        parts.append(heun(denoiser, draws.normal("unit", denoiser.shape), 18, condition).cpu())
    labels = torch.arange(question.samples) % denoiser.classes if denoiser.classes else None
    classes = tuple(str(number) for number in range(denoiser.classes))
    return data.Images(data.to_uint8(torch.cat(parts)), labels, classes, "its own samples")
