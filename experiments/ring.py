"""Every divergence under one budget, on a ring of eight Gaussians.

    python -m experiments.ring [--steps N] [--seeds K] [--lr LR] [--json PATH]

The instructor is exact, so that whatever is missing is the objective's or the fake score's;
`experiments.ring_exact` tells the two apart.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.harness import Rows, command, deviation
from benchmarks.objectives import DIVERGENCES
from distill.build import full_copy
from distill.recipe import Method
from distill.trainer import State, train
from eval.distances import wasserstein2
from instil.base.draws import Draws
from instil.base.levels import LogUniform
from instil.base.runs.monitor import note
from instructors.adapters.karras import Karras
from instructors.analytic import Mixture, mixture
from instructors.mlp import MLP
from instructors.training.denoising import denoising_loss
from students.one_step import OneStep

MODES, RADIUS, WIDTH = 8, 3.0, 0.2
SAMPLES = 2_000
LEVELS = LogUniform(sigma_min=0.05, sigma_max=20.0)
ADAM = {"lr": 1e-3, "betas": [0.0, 0.99]}


def law() -> Mixture:
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 3, known exactly."""
    angle = torch.arange(MODES) * 2 * math.pi / MODES
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    return mixture(torch.ones(MODES), means, WIDTH**2 * torch.eye(2).expand(MODES, 2, 2))


def noised(clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Samples (B, 2) under noise, and its levels (B,)."""
    sigma = LEVELS.sample(draws.uniform("sigma").float(), 0.002, 80.0)
    return clean + sigma[:, None] * draws.normal("noise", (2,)), sigma


@cache
def pretrained(seed: int, steps: int = 2_000) -> Karras:
    """A network trained on samples of the mixture: what student and fake start as copies of."""
    instructor = law()
    torch.manual_seed(seed)
    denoiser = Karras(MLP(2, width=128), (2,), sigma_data=RADIUS / math.sqrt(2))
    adam = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    for step in range(steps):
        draws = Draws.of_range(seed, step, 0, 512)
        clean = _sample(instructor, draws)
        noisy, sigma = noised(clean, draws)
        denoising_loss(denoiser(noisy, sigma), clean, denoiser.weight(sigma)).mean().backward()
        adam.step()
        adam.zero_grad()
    return denoiser


def measure(samples: Tensor, instructor: Mixture, seed: int) -> dict[str, float]:
    """W2 and its floor, modes that hold at least a quarter of their share, samples near a mode."""
    truth = [_sample(instructor, Draws.of_range(seed, block, 0, SAMPLES)) for block in (1, 2)]
    distance, nearest = torch.cdist(samples, instructor.means).min(1)
    share = torch.bincount(nearest[distance < 3 * WIDTH], minlength=MODES) / len(samples)
    return {
        "w2": wasserstein2(samples, truth[0]),
        "floor": wasserstein2(truth[1], truth[0]),
        "modes": int((share > 0.25 / MODES).sum()),
        "near": (distance < 3 * WIDTH).double().mean().item(),
    }


def distil(divergence: dict[str, Any], seed: int, steps: int, lr: float) -> dict[str, float]:
    """Distil the exact mixture into one step, from level 5, at a learning rate of the student."""
    instructor = law()
    start = pretrained(seed)
    method = Method().replace(
        divergence=divergence,
        levels=LEVELS,
        optimizer=ADAM | {"lr": lr},
        fake={"updates": 2, "optimizer": ADAM},
        train={"steps": steps, "batch": 256, "averages": [20_000], "seed": seed},
    )
    state = State.fresh(OneStep(full_copy(start), 5.0), full_copy(start), method)
    began = time.perf_counter()
    for _ in train(state, instructor, method, Accelerator(cpu=True)):
        pass
    seconds = time.perf_counter() - began
    student = state.averages[0].module
    with torch.no_grad():
        samples = student(student.prior(Draws.of_range(seed, 10**9, 0, SAMPLES)))
    return measure(samples, instructor, seed) | {"seconds": seconds}


def compared(
    way: Callable[[dict[str, Any], int, int], dict[str, float]], arguments: argparse.Namespace
) -> tuple[Rows, dict[str, Any]]:
    """The table of a way to distil by a divergence, under a seed, for a number of updates."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    for name, divergence in DIVERGENCES.items():
        note(name)
        seeds = [way(divergence, seed, arguments.steps) for seed in range(arguments.seeds)]
        each = {key: [found[key] for found in seeds] for key in seeds[0]}
        facts[name] = {
            key: {"mean": statistics.mean(values), "std": deviation(values), "each": values}
            for key, values in each.items()
        }
    rows = [
        {
            "objective": name,
            "W2": f"{f['w2']['mean']:.3f} ± {f['w2']['std']:.3f}",
            "W2 of two true samples": f"{f['floor']['mean']:.3f}",
            "modes": f"{f['modes']['mean']:.1f} of {MODES}",
            "near a mode": f"{f['near']['mean']:.3f}",
            "seconds": f"{f['seconds']['mean']:.0f}",
        }
        for name, f in facts.items()
    ]
    return rows, facts


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The table."""
    return compared(partial(distil, lr=arguments.lr), arguments)


def _sample(instructor: Mixture, draws: Draws) -> Tensor:
    return instructor.sample(draws.normal("z", (2,)), draws.uniform("component"))


if __name__ == "__main__":
    options = {
        "--steps": {"type": int, "default": 2_000, "help": "student updates [%(default)s]"},
        "--seeds": {"type": int, "default": 3, "help": "training seeds [%(default)s]"},
        "--lr": {"type": float, "default": ADAM["lr"], "help": "of the student [%(default)s]"},
    }
    sys.exit(command(run, "Ring of eight Gaussians", options))
