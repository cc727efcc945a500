"""A denoiser read a few times, with fresh noise in between."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser
from students.student import Latent, Student


class FewStep(Student):
    """x_1 = D(z_1 scaled to level s_1, s_1), then x_k = D(x_{k-1} + s_k z_k, s_k).

    The latent holds the noises z_1, …, z_n and the step to leave after: the last one in eval mode,
    any with equal probability in training mode. One fake score sees all exits, so only the mixture
    of their distributions follows the instructor's; single exits may drift apart. Gradients reach
    the last step taken; the steps before it only make its input.

    Args:
        denoiser: Trained from here on.
        sigmas: The levels s_1 > s_2 > …; one of them is a one-step student.

    Raises:
        InstilError: The levels do not fall, or the denoiser was not trained at one of them.

    Source:
        Yin et al. 2024, arXiv 2405.14867 (DMD2), section 4.4: training on the sampler's own inputs.
    """

    def __init__(self, denoiser: Denoiser, sigmas: Sequence[float]) -> None:
        super().__init__()
        low, high = denoiser.sigma_min, denoiser.sigma_max
        falling = all(one > two for one, two in pairwise(sigmas))
        if not sigmas or not falling or sigmas[0] > high or sigmas[-1] < low:
            raise InstilError(
                f"student.sigmas: {list(sigmas)} must fall inside the instructor's range "
                f"[{low:g}, {high:g}]"
            )
        self.denoiser = denoiser
        self.sigmas = tuple(denoiser.nearest(sigma) for sigma in sigmas)
        self.shape, self.classes, self.nfe = denoiser.shape, denoiser.classes, len(self.sigmas)

    def prior(self, draws: Draws) -> Latent:
        dtype = next(self.parameters()).dtype
        names = ("latent", *(f"latent-{number}" for number in range(1, self.nfe)))
        last = torch.full_like(draws.index, self.nfe - 1)
        leave = draws.integers("exit", self.nfe) if self.training else last
        return (*(draws.normal(name, self.shape, dtype) for name in names), leave)

    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        first, *others, leave = latent
        levels = first.new_tensor(self.sigmas)
        noisy = self.denoiser.start(first, self.sigmas[0])
        entered = noisy  # what the step that is left gets
        with torch.no_grad():
            for number, noise in enumerate(others, start=1):
                sigma = levels[number - 1].expand(len(first))
                clean = self.denoiser(noisy, sigma, condition)
                noisy = clean + levels[number] * noise
                entered = torch.where(expand(leave, first) >= number, noisy, entered)
        torch.clear_autocast_cache()  # else autocast reuses weights that were cast without gradient
        return self.denoiser(entered, levels[leave], condition)
