"""Whether a generator speaks its instructor's language."""

import torch
from torch import Tensor

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser, class_labels
from students.student import Student

PROBES = 64
CLASS_SIGMA = 1.0  # of images in [-1, 1]: much of their shape is gone, so a label helps


def check(student: Student, denoiser: Denoiser, name: str) -> None:
    """Refuse a generator that does not speak its instructor's language.

    Args:
        student: On the instructor's device.
        denoiser: The instructor.
        name: Of the student, for the message.

    Raises:
        InstilError: Shape, number or order of the labels, or range of the images differ, the images
            are not finite, or the generator draws random numbers of its own.
    """
    if student.shape != denoiser.shape:
        raise InstilError(
            f"{name}: makes images of the shape {student.shape}, the instructor {denoiser.shape}"
        )
    if student.classes != denoiser.classes:
        raise InstilError(
            f"{name}: has {student.classes} class labels, the instructor {denoiser.classes}"
        )
    images, again = (_samples(student) for _ in range(2))
    if not images.isfinite().all():
        raise InstilError(f"{name}: some of its images are not finite; take an earlier checkpoint")
    if not torch.equal(images, again):
        raise InstilError(
            f"{name}: two images of one z differ, so it draws random numbers itself; make them an "
            "argument, or switch them off in the factory"
        )
    low, high = (
        images.flatten()[:: -(-images.numel() // 2**20)].quantile(q).item() for q in (0.01, 0.99)
    )
    if low < -2 or high > 2 or low > -0.02:
        raise InstilError(
            f"{name}: its images span [{low:.3g}, {high:.3g}], the instructor's [-1, 1]; say the "
            "range of its black and white, such as range=[0,1]"
        )

    order = class_order(student, denoiser)
    if sorted(order) == list(range(len(order))) and order != sorted(order):
        wrong = next(number for number, found in enumerate(order) if number != found)
        raise InstilError(
            f"{name}: to the instructor its class {wrong} looks like class {order[wrong]}; the "
            f"classes 0, 1, … are the instructor's {order}, so reorder them in the factory"
        )


@torch.no_grad()
def class_order(student: Student, denoiser: Denoiser, each: int = 4) -> list[int]:
    """For each of up to ten classes, the label under which the instructor denoises its images best.

    Where no label is better than the class's own by a twentieth, it is the class's own.
    """
    device = next(student.parameters()).device
    count = min(student.classes, 10)
    draws = Draws.of_range(0, 0, 0, each * count, device)
    own = Condition(label=draws.index % count) if count else UNCONDITIONAL
    clean = student(student.prior(draws), own)
    sigma = clean.new_full((len(clean),), CLASS_SIGMA)
    sigma = denoiser.round_sigma(sigma.clamp(denoiser.sigma_min, denoiser.sigma_max))
    noisy = clean + expand(sigma, clean) * draws.normal("order", student.shape, clean.dtype)
    losses = []  # by label, by class
    for number in range(count):
        label = Condition(label=torch.full_like(draws.index, number))
        loss = (denoiser(noisy, sigma, label) - clean).square().flatten(1).mean(1)
        losses.append(loss.view(each, count).mean(0))
    if not losses:
        return []
    table = torch.stack(losses, dim=1)  # by class, by label
    best = table.argmin(1)
    better = table.amin(1) < 0.95 * table.diagonal()
    return torch.where(better, best, torch.arange(count, device=device)).tolist()


@torch.no_grad()
def _samples(student: Student) -> Tensor:
    device = next(student.parameters()).device
    draws = Draws.of_range(0, 0, 0, PROBES, device)
    return student(student.prior(draws), class_labels(student.classes, draws.index))
