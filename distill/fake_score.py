"""The fake score: an auxiliary denoiser that tracks the student's own law along the diffusion."""

import copy

from instructors.denoiser import Denoiser
from instructors.lora import Lora
from instructors.low_rank import shared_copy


def full_copy(instructor: Denoiser) -> Denoiser:
    """A trainable copy of the instructor's bare network, in eval mode: no dropout anywhere."""
    return copy.deepcopy(instructor.base()).eval().requires_grad_(True)


def copy_of(instructor: Denoiser, lora: Lora | None, seed: int, key: str) -> Denoiser:
    """What a fake score, or a student, starts from: a full copy, or adapters on shared weights.

    Args:
        instructor: Copied.
        lora: The adapters; None for a full copy.
        seed: Of the adapters.
        key: Of the recipe, for messages.

    Raises:
        InstilError: As `shared_copy`.
    """
    return shared_copy(instructor, lora, seed, key) if lora else full_copy(instructor)
