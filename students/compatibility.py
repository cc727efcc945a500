"""Whether a generator fits its instructor: shapes, labels, range, gradients, what it saves."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from instil.base.checkpoint import compare, read_tensors
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Condition, Denoiser, class_labels
from instructors.low_rank import portable
from students.export import ADAPTERS, DENOISER
from students.load import load_folder
from students.pretrained import Pretrained
from students.student import Student

PROBES = 64
CLASS_SIGMA = 1.0  # of images in [-1, 1]: much of their shape is gone, so a label helps
PER_CLASS = 4  # images whose class is compared
COMPARED, MOST_APART = 4, 1e-3  # images of a saved student; an eighth of a grey level


def check_compatible(student: Student, denoiser: Denoiser, name: str) -> None:
    """Refuse a generator that does not fit its instructor.

    Args:
        student: The generator, on the instructor's device; its parameters take gradients.
        denoiser: The instructor.
        name: Name of the student, for messages.

    Raises:
        InstilError: Shape, number or order of the labels, or range of the images differ, the images
            are not finite or have no gradient, the generator draws random numbers out of reach, or
            a saved one would draw other images.
    """
    if student.shape != denoiser.shape:
        hint = ""
        if torch.Size(student.shape).numel() == torch.Size(denoiser.shape).numel():
            hint = f"; if they hold the same pixels, say shape={list(denoiser.shape)}"
        raise InstilError(
            f"{name}: makes images of the shape {student.shape}, the instructor "
            f"{denoiser.shape}{hint}"
        )
    if student.classes != denoiser.classes:
        raise InstilError(
            f"{name}: has {student.classes} class labels, the instructor {denoiser.classes}"
        )
    images, again = (_samples(student) for _ in range(2))
    if images.dtype != torch.float32:
        raise InstilError(f"{name}: makes {images.dtype} images; call .float() in the factory")
    if not images.requires_grad:
        raise InstilError(
            f"{name}: its images have no gradient, so it cannot be trained; remove no_grad and "
            "detach from its forward pass"
        )
    images, again = images.detach(), again.detach()
    check_range(images, name)
    if not torch.equal(images, again):
        raise InstilError(
            f"{name}: two images of one z differ, so it draws random numbers that cannot be "
            "replaced; make them an argument, or switch them off in the factory"
        )
    order = class_order(student, denoiser)
    if sorted(order) == list(range(len(order))) and order != sorted(order):
        wrong = next(number for number, best in enumerate(order) if number != best)
        raise InstilError(
            f"{name}: to the instructor its class {wrong} looks like class {order[wrong]}; the "
            f"classes 0, 1, … are the instructor's {order}, so reorder them in the factory"
        )
    if isinstance(student, Pretrained):
        with tempfile.TemporaryDirectory() as folder:
            student.save_pretrained(folder)
            check_saved(student, Path(folder), factory=getattr(student, "factory", None))


def check_range(images: Tensor, name: str) -> None:
    """Refuse images that are not finite, or do not span about [-1, 1].

    Raises:
        InstilError: They do not; the message names the range they span.
    """
    if not images.isfinite().all():
        raise InstilError(f"{name}: some of its images are not finite; take an earlier checkpoint")
    low, high = (
        images.flatten()[:: -(-images.numel() // 2**20)].quantile(q).item() for q in (0.01, 0.99)
    )
    if low < -2 or high > 2 or low > -0.02:
        raise InstilError(
            f"{name}: its images span [{low:.3g}, {high:.3g}], the instructor's [-1, 1]; say the "
            f"range of its black and white, such as range={'[0,255]' if high > 2 else '[0,1]'}"
        )


@torch.no_grad()
def check_saved(
    student: Student, folder: Path, prior: Prior | None = None, factory: str | None = None
) -> None:
    """Refuse a folder whose student draws other images than the one it was saved from.

    Args:
        student: The one that was saved.
        folder: Where it was saved.
        prior: Conditions of the images; None for class labels.
        factory: The user's code that makes the network, if the folder needs one.

    Raises:
        InstilError: The folder cannot be loaded, or an image differs by more than rounding.
    """
    if (folder / ADAPTERS).exists():  # which their instructor's own pipeline loads
        held = {n.split(".", 1)[1]: t for n, t in read_tensors(folder / ADAPTERS).items()}
        check_tensors(folder / ADAPTERS, held, portable(cast(Any, student).denoiser))
        return
    if (folder / DENOISER).exists() and factory is None:  # of a network made in memory
        wanted = cast(Any, student).denoiser.state_dict()
        check_tensors(folder / DENOISER, read_tensors(folder / DENOISER), wanted)
        return
    device = next(student.parameters()).device
    draws = Draws.of_range(0, 0, 0, COMPARED, device)
    condition = (prior or labels(student.classes)).to(device).at(draws.index)
    copy, modes = load_folder(folder, factory).to(device), [m.training for m in student.modules()]
    images, again = (each(each.prior(draws), condition) for each in (student.eval(), copy))
    for module, mode in zip(student.modules(), modes, strict=True):
        module.training = mode
    apart = ((again - images).abs().max() / images.abs().max().clamp(min=1)).item()
    parameters = (*student.parameters(), *copy.parameters())
    coarsest = max(torch.finfo(p.dtype).eps for p in parameters if p.is_floating_point())
    if not apart <= max(MOST_APART, 32 * coarsest):
        raise InstilError(
            f"{folder}: draws other images than the student it was saved from, by up to "
            f"{apart:.3g}; keep every tensor that images depend on in a parameter or a buffer, and "
            "draw none anew when the network is made"
        )


def check_tensors(path: Path, held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a file of other tensors than those that were to be written."""
    compare(str(path), held, wanted)
    for name, tensor in wanted.items():
        if not torch.equal(held[name], tensor.cpu()):
            raise InstilError(f"{path}: {name} has other values than were written; export it anew")


@torch.no_grad()
def class_order(student: Student, denoiser: Denoiser) -> list[int]:
    """For each of up to ten classes, the label under which the instructor denoises its images best.

    Where no label is better than the class's own by a twentieth, it is the class's own.
    """
    device = next(student.parameters()).device
    count = min(student.classes, 10)
    if not count:
        return []
    draws = Draws.of_range(0, 0, 0, PER_CLASS * count, device)
    clean = student(student.prior(draws), class_labels(count, draws.index))
    sigma = clean.new_full((len(clean),), CLASS_SIGMA)
    sigma = denoiser.round_sigma(sigma.clamp(denoiser.sigma_min, denoiser.sigma_max))
    noisy = clean + expand(sigma, clean) * draws.normal("order", student.shape, clean.dtype)
    losses = []  # by label, by class
    for number in range(count):
        label = Condition(label=torch.full_like(draws.index, number))
        loss = (denoiser(noisy, sigma, label) - clean).square().flatten(1).mean(1)
        losses.append(loss.view(PER_CLASS, count).mean(0))
    table = torch.stack(losses, dim=1)  # by class, by label
    best = table.argmin(1)
    better = table.amin(1) < 0.95 * table.diagonal()
    return torch.where(better, best, torch.arange(count, device=device)).tolist()


def _samples(student: Student) -> Tensor:
    device = next(student.parameters()).device
    draws = Draws.of_range(0, 0, 0, PROBES, device)
    return student(student.prior(draws), class_labels(student.classes, draws.index))
