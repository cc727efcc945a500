"""An instructor adapted to images of one's own, by one arm of a transfer."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from instil.base import data
from instil.base.card import model_card
from instil.base.errors import InstilError
from instil.base.files import appearing, write_text
from instil.base.runs.training import card_lines, origin
from instructors.codec import Codec
from instructors.denoiser import Condition, Denoiser, labelled
from instructors.files.sources import network_folder
from instructors.instructor import Instructor
from instructors.low_rank import merged
from instructors.transfer import Arm
from instructors.transfer.arms import Transfer, begin, fit, trunk
from instructors.transfer.heads import blank, check, relabelled


@dataclass(frozen=True)
class Target:
    """What an instructor is adapted to.

    Attributes:
        images: As they were read.
        samples: (N, *shape) in the instructor's space; uint8 where that is the images' own.
        condition: Class labels, where there are some.
        classes: Number of them; 0 for none.
    """

    images: data.Images
    samples: Tensor
    condition: Condition
    classes: int

    @classmethod
    def of(cls, instructor: Instructor, images: data.Images, device: torch.device) -> "Target":
        """Look at images through the instructor's codec; it and the denoiser move to the device.

        Raises:
            InstilError: They are of another shape, or the instructor cannot be adapted to them.
        """
        instructor.denoiser.to(device)
        instructor.codec.to(device)
        wanted = instructor.codec.image_shape(instructor.denoiser.shape)
        if images.shape != wanted:
            raise InstilError(
                f"{images.source}: images of the shape {images.shape}, {instructor.card.source} "
                f"makes {wanted}; resize or convert them first"
            )
        classes = 0 if images.labels is None else len(images.classes)
        check(instructor.denoiser, classes)  # what is refused is refused before any work
        return cls(
            images, _encoded(instructor.codec, images, device), labelled(images.labels), classes
        )


@torch.no_grad()
def _encoded(codec: Codec, images: data.Images, device: torch.device) -> Tensor:
    if type(codec) is Codec:
        return images.pixels
    parts = (codec.encode(data.floats(part).to(device)) for part in images.pixels.split(16))
    return torch.cat([part.cpu() for part in parts])


def adapt(
    source: Denoiser,
    target: Target,
    arm: Arm,
    recipe: Transfer,
    accelerator: Accelerator,
    rows: Tensor | None = None,
    updates: int | None = None,
) -> tuple[Denoiser, int]:
    """Fit one arm to the target's images.

    Args:
        source: Not changed.
        target: What it is adapted to.
        arm: What is shared, and what is trained.
        recipe: How.
        accelerator: The only distributed engine.
        rows: Numbers of the images to train on; None for all.
        updates: As `instructors.transfer.arms.fit` takes it.

    Returns:
        The denoiser, in eval mode, and the number of updates it was trained for.
    """
    model, penalty = begin(
        arm,
        relabelled(source, target.classes),
        lambda: blank(source, target.classes, recipe.seed),
        trunk,
        recipe.kappa,
        recipe.lora,
        recipe.seed,
    )
    model, samples, condition = model.to(accelerator.device), target.samples, target.condition
    if rows is not None:
        samples, condition = samples[rows], condition.rows(rows)
    return fit(model, samples, condition, recipe.of(arm), accelerator, penalty, updates)


def save(
    denoiser: Denoiser,
    instructor: Instructor,
    target: Target,
    arm: Arm,
    updates: int,
    folder: Path,
    command: str,
) -> None:
    """Write an adapted instructor in the format of the one it was made of, whole or not at all.

    Args:
        denoiser: What `adapt` returned.
        instructor: What it was made of; all but its network is copied.
        target: What it was adapted to.
        arm: How.
        updates: It was trained for.
        folder: Replaced if it exists.
        command: That made it, for the card.
    """
    card = instructor.card
    where = network_folder(card.source)
    text = (
        f"`{card.source}` ({card.sha256}) adapted to other images by the arm `{arm}`, "
        f"{updates} updates.\n\n{card_lines(target.images, command)}"
    )
    described = model_card(
        folder.name,
        text,
        card.licence,
        ("diffusion", "instil-instructor"),
        "diffusers",
        origin(target.images, command),
    )
    network: Any = merged(denoiser).network
    with appearing(folder) as partial:
        left = {"README.md", "figures.json"}
        for path in card.folder.iterdir():
            own = path == where or (where == card.folder and path.suffix == ".safetensors")
            if not own and path.name not in left and not path.name.startswith("."):
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, partial / path.name)
        network.cpu().save_pretrained(partial / where.relative_to(card.folder))
        write_text(partial / "README.md", described)
