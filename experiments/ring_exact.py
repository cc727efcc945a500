"""The ring of eight Gaussians with an exact fake score: whatever goes wrong is the divergence's.

    python -m experiments.ring_exact [--steps N] [--seeds K] [--json PATH]

The student is a mixture of Gaussians as wide as the modes, and what is trained are their means. So
its own denoiser is known at every moment, as the instructor's is, and no network is left that could
lag behind. `experiments.ring` is the same with networks.
"""

import sys
import time
from functools import partial
from typing import Any

import torch

from benchmarks.harness import command
from distill.recipe import Method
from experiments.ring import RADIUS, SAMPLES, WIDTH, compared, law, measure, noised
from instil.base.draws import Draws
from instructors.analytic import mixture

MEANS, BATCH, LR = 128, 256, 0.01


def distil(divergence: dict[str, Any], seed: int, steps: int) -> dict[str, float]:
    """Train the student's means, from a Gaussian of the ring's size."""
    instructor, objective = law(), Method().replace(divergence=divergence).divergence
    start = Draws.of_range(seed, 0, 0, MEANS).normal("start", (2,))
    means = (RADIUS / 2**0.5 * start).requires_grad_()
    covariances = WIDTH**2 * torch.eye(2).expand(MEANS, 2, 2)
    fake = mixture(torch.ones(MEANS), means.detach().clone(), covariances)
    adam = torch.optim.Adam([means], lr=LR, betas=(0.0, 0.99))
    began = time.perf_counter()
    for step in range(1, steps + 1):
        draws = Draws.of_range(seed, step, 0, BATCH)
        which = (MEANS * draws.uniform("which")).long()
        sample = means[which] + WIDTH * draws.normal("z", (2,))
        noisy, sigma = noised(sample if objective.jacobian else sample.detach(), draws)
        denoised = instructor(noisy, sigma), fake(noisy, sigma)
        objective(sample, sigma, *denoised).mean().backward()
        adam.step()
        adam.zero_grad()
        fake.means.copy_(means.detach())
    seconds = time.perf_counter() - began
    draws = Draws.of_range(seed, 10**9, 0, SAMPLES)
    samples = fake.sample(draws.normal("z", (2,)), draws.uniform("which"))
    return measure(samples, instructor, seed) | {"seconds": seconds}


if __name__ == "__main__":
    options = {
        "--steps": {"type": int, "default": 1_000, "help": "updates [%(default)s]"},
        "--seeds": {"type": int, "default": 3, "help": "training seeds [%(default)s]"},
    }
    sys.exit(command(partial(compared, distil), "The ring, with an exact fake score", options))
