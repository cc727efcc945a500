"""A frozen pretrained model and where it comes from."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from instil.base.checkpoint import digest
from instil.base.files import cache_folder
from instructors.codec import Codec
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Denoiser


@dataclass(frozen=True)
class Card:
    """Where an instructor comes from.

    Attributes:
        source: The user's name for it.
        folder: The folder of its files; for an instructor made in memory, one for its figures.
        licence: The licence named by its model card, or "unknown".
        sha256: Twelve hexadecimal digits of the hash of its weights; empty if none were read.
        distilled: The reason why it looks like a distilled model; empty if there is none.
    """

    source: str
    folder: Path
    licence: str
    sha256: str
    distilled: str = ""


@dataclass(frozen=True)
class Instructor:
    """A frozen pretrained model.

    Attributes:
        denoiser: The model.
        card: Its origin.
        codec: The way from its space to images and back.
        prior: The conditions asked of it; for text models, empty until prompts are given.
    """

    denoiser: Denoiser
    card: Card
    codec: Codec = field(default_factory=Codec)
    prior: Prior = field(default_factory=Prior)

    @classmethod
    def of(cls, denoiser: Denoiser, name: str) -> "Instructor":
        """Make an instructor of a denoiser of images in memory.

        Args:
            denoiser: A model of images in [-1, 1]; frozen in place, and in eval mode from here on.
            name: The name used by cards and messages.
        """
        facts = f"{type(denoiser).__name__} {digest(denoiser, 64)}"
        weights = hashlib.sha256(facts.encode()).hexdigest()[:12]
        card = Card(name, cache_folder() / weights, "unknown", weights)
        frozen = denoiser.eval().requires_grad_(False)
        return cls(frozen, card, prior=labels(denoiser.classes))
