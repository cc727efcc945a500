"""Vectors for the experiments: a Swiss roll, a small trained denoiser, samplers, a distance."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import make_swiss_roll
from torch import Tensor

from instil.base.draws import Draws
from instil.base.levels import LogUniform
from instil.base.optimizer import Adam
from instil.base.shapes import expand
from instructors.adapters.karras import Karras
from instructors.analytic import Mixture, empirical
from instructors.denoiser import Denoiser
from instructors.mlp import MLP
from instructors.training.denoising import denoising_loss
from instructors.training.penalties import ReferencePath, ScoreGradient

LOW, HIGH = 0.02, 20.0
Sigmas = Callable[[Tensor], Tensor]


def swiss_roll(count: int, seed: int) -> Tensor:
    """(count, 2) points of scikit-learn's roll, of unit size, with noise of 0.05."""
    found = make_swiss_roll(count, noise=0.35, random_state=seed)[0]
    return torch.from_numpy(np.asarray(found)[:, [0, 2]] / 7).float()


def fit(
    samples: Tensor,
    steps: int,
    *,
    seed: int = 0,
    penalty: ReferencePath | ScoreGradient | None = None,
    sigmas: Sigmas | None = None,
    high: float = HIGH,
) -> Karras:
    """A preconditioned MLP trained on vectors.

    Args:
        samples: (N, d).
        steps: Updates of 256 samples.
        seed: Of the weights and of all draws.
        penalty: Of the training.
        sigmas: Noise levels of uniform numbers (B,); uniform in log sigma if None.
        high: The largest of them.
    """
    torch.manual_seed(seed)
    size = samples.shape[1]
    denoiser = Karras(MLP(size), (size,), LOW, high, samples.std().item())
    adam = Adam(lr=2e-3, betas=(0.9, 0.99), warmup=100, schedule="cosine", clip=1.0)
    optimizer, levels = adam.build(denoiser), LogUniform()
    term = None if penalty is None or not penalty.kappa else penalty.term(samples)
    for step in range(steps):
        draws = Draws.of_range(seed, step, 0, 256)
        uniform = draws.uniform("sigma").float()
        sigma = levels.sample(uniform, LOW, high) if sigmas is None else sigmas(uniform)
        clean = samples[draws.integers("row", len(samples))]
        noisy = clean + expand(sigma, clean) * draws.normal("noise", (size,))
        weight = denoiser.weight(sigma)
        if penalty is not None:
            penalty.forward(noisy)
        denoised = denoiser(noisy, sigma)
        loss = denoising_loss(denoised, clean, weight)
        if term is not None:
            loss = loss + term(denoised, noisy, sigma, weight, draws)
        loss.mean().backward()
        adam.update(optimizer, step, steps)
    return denoiser.eval().requires_grad_(False)


@torch.no_grad()
def reverse_sde(
    denoiser: Denoiser, start: Tensor, high: float, *, low: float = LOW, steps: int = 100
) -> Tensor:
    """Samples by the reverse SDE from sigma = `high`, in steps of the posterior of x given D.

    Args:
        denoiser: The model.
        start: (N, d), of the noisy law at `high`.
        high: Where it starts.
        low: Where it ends, with the denoised sample.
        steps: Levels, evenly spaced in log sigma.

    Returns:
        (N, d), without the noise of the last level.
    """
    x, sigmas = start, torch.linspace(math.log(high), math.log(low), steps).exp().tolist()
    for step, (now, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoiser(x, x.new_full((len(x),), now))
        share = (after / now) ** 2
        noise = Draws.of_range(1, step, 0, len(x)).normal("sde", tuple(x.shape[1:]), x.dtype)
        x = denoised + share * (x - denoised) + after * math.sqrt(1 - share) * noise
    return denoiser(x, x.new_full((len(x),), sigmas[-1]))


def start_of(reference: Mixture, count: int, high: float) -> Tensor:
    """(count, d) samples of a reference under noise `high`."""
    draws, shape = Draws.of_range(2, 0, 0, count), tuple(reference.shape)
    clean = reference.sample(
        draws.normal("reference", shape, torch.float64), draws.uniform("component")
    )
    return (clean + high * draws.normal("noise", shape, torch.float64)).float()


def kde_divergence(truth: Tensor, generated: Tensor, bandwidth: float = 0.15) -> float:
    """KL between kernel densities of two samples, on a half of the first that made neither.

    Args:
        truth: (N, d).
        generated: (M, d).
        bandwidth: Of both.
    """
    half = len(truth) // 2
    at, zero = truth[half:].double(), torch.zeros(len(truth) - half, dtype=torch.float64)
    laws = [empirical(each.double(), bandwidth) for each in (truth[:half], generated)]
    densities = [law.log_density(at, zero) for law in laws]
    return (densities[0] - densities[1]).mean().item()
