"""The fake score: an auxiliary denoiser that tracks the student's own law along the diffusion."""

import copy

from instructors.denoiser import Denoiser


def full_copy(instructor: Denoiser) -> Denoiser:
    """A trainable copy of the instructor's bare network, in eval mode: no dropout anywhere."""
    return copy.deepcopy(instructor.base()).eval().requires_grad_(True)
