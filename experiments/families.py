"""The two families of conditional models that transfer is tried with: diffusions and flows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eval.curves import (
    Estimate,
    LossCurve,
    contributions,
    denoising_loss_curve,
    noise_levels,
    noised_losses,
    square,
)
from experiments.tasks import HIGH, LOW, Exact, P, R, Task, source_head
from instil.base.early_stopping import EarlyStopping
from instil.base.levels import LogUniform
from instil.base.optimizer import Adam
from instructors.adapters.karras import Karras
from instructors.denoiser import Condition, Denoiser
from instructors.mlp import MLP, perceptron
from instructors.transfer import Arm
from instructors.transfer.arms import Transfer, begin, embedding, fit
from students import coupling_flow
from students.coupling_flow import CouplingFlow

LEVELS = noise_levels(LOW, HIGH)
KAPPA = 0.3
STOPPING = EarlyStopping(every=10, patience=10)
Anchor = Callable[[], Tensor] | None


@dataclass(frozen=True)
class Family:
    """One kind of model of x given z.

    Attributes:
        blank: Features, length of z and seed to a model with initial weights.
        fit: Model, x, condition, updates, seed and penalty to the trained model.
        nats: Model, x and condition to (N,) held-out nats, up to a constant of the samples.
        excess: Model and task to its KL from the law, nats.
    """

    blank: Callable[[int, int, int], Any]
    fit: Callable[[Any, Tensor, Condition, int, int, Anchor], Any]
    nats: Callable[[Any, Tensor, Condition], Tensor]
    excess: Callable[[Any, Task], Estimate]


def batch_of(count: int) -> int:
    """Samples per update: few samples need small batches, many are worth larger ones."""
    return 64 if count < 2000 else 256


def blank_diffusion(features: int, given: int, seed: int) -> Denoiser:
    """A preconditioned MLP with an embedding of z."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(features, 64, 2, context=R, embed=perceptron(given, 64, R))
    denoiser = Karras(network, (features,), LOW, HIGH, sigma_data=1.0)
    denoiser.text = ("context",)
    return denoiser


def fit_diffusion(
    denoiser: Denoiser, x: Tensor, known: Condition, steps: int, seed: int, anchor: Anchor = None
) -> Denoiser:
    """Its average of weights when early stopping kept it."""
    recipe = Transfer(
        levels=LogUniform(sigma_min=0.03, sigma_max=HIGH),
        steps=steps,
        batch=batch_of(len(x)),
        lowest=0.05,
        seed=seed,
        stopping=STOPPING,
    )
    return fit(denoiser, x, known, recipe, Accelerator(cpu=True), anchor)[0].eval()


def diffusion_nats(denoiser: Denoiser, x: Tensor, known: Condition) -> Tensor:
    """(N,) integral of the denoising loss."""
    return contributions(denoising_loss_curve(denoiser, x, LEVELS, condition=known))


@torch.no_grad()
def diffusion_excess(denoiser: Denoiser, task: Task) -> Estimate:
    """Identities (1) and (4) of `eval.curves`, with the exact denoiser of the task."""
    exact = Exact(task)
    x, known = task.sample(2000, seed=99)

    def apart(clean: Tensor, noisy: Tensor, sigma: Tensor, given: Condition) -> Tensor:
        return square(denoiser(noisy, sigma, given), exact(noisy, sigma, given))

    losses = noised_losses(apart, x, LEVELS, known, 1, 0, 2000, "cpu", None)
    return Estimate.of(contributions(LossCurve(LEVELS, losses, "the task's own law")))


def blank_flow(features: int, given: int, seed: int) -> CouplingFlow:
    """Four coupling layers with an embedding of z; splines, as affine ones run wild on few x."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CouplingFlow(
            (features,), "spline", context=given, embedding=(64, R), transforms=4, hidden=(64,)
        )


def fit_flow(
    flow: CouplingFlow, x: Tensor, known: Condition, steps: int, seed: int, anchor: Anchor = None
) -> CouplingFlow:
    """By exact likelihood, with early stopping."""
    rate = 1e-3 if len(x) < 2000 else 3e-3
    adam = Adam(lr=rate, betas=(0.9, 0.99), schedule="cosine", clip=5.0)
    batch = batch_of(len(x))
    coupling_flow.fit(
        flow, x, known, steps, batch, adam, seed=seed, stopping=STOPPING, anchor=anchor
    )
    return flow


@torch.no_grad()
def flow_nats(flow: CouplingFlow, x: Tensor, known: Condition) -> Tensor:
    """(N,) minus the log-density."""
    return -flow.log_prob(x, known)


@torch.no_grad()
def flow_excess(flow: CouplingFlow, task: Task) -> Estimate:
    """The task's log-density less the flow's."""
    x, known = task.sample(4000, seed=99)
    return Estimate.of(task.log_density(x, known) - flow.log_prob(x, known))


FAMILIES = {
    "diffusion": Family(blank_diffusion, fit_diffusion, diffusion_nats, diffusion_excess),
    "flow": Family(blank_flow, fit_flow, flow_nats, flow_excess),
}


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        source: Samples of the source.
        teaching: Updates of a source model.
        steps: Most updates of a target model.
    """

    source: int
    teaching: int
    steps: int


@cache
def taught(family: str, angle: float, size: Size) -> nn.Module:
    """The model of the source whose embedding is `angle` from the target's."""
    kind, task = FAMILIES[family], Task(angle, source_head)
    x, known = task.sample(size.source, seed=1)
    return kind.fit(kind.blank(2, P, 0), x, known, size.teaching, 0, None)


def adapted(
    family: str, arm: Arm, source: nn.Module, x: Tensor, known: Condition, steps: int, seed: int = 0
) -> Any:
    """A model of the target by one arm."""
    kind, given = FAMILIES[family], known["context"].shape[1]
    model, anchor = begin(
        arm, source, lambda: kind.blank(x.shape[1], given, seed + 1), embedding, KAPPA
    )
    return kind.fit(model, x, known, steps, seed, anchor)


@cache
def excess(family: str, arm: Arm, angle: float, count: int, size: Size, seed: int = 0) -> Estimate:
    """KL of a target model of `count` samples from the target's law, nats.

    Args:
        family: Of `FAMILIES`.
        arm: What is done with the source's embedding.
        angle: Between the two embeddings; scratch is the same at all.
        count: n_t.
        size: What is spent.
        seed: Of the target's samples, weights and batches.
    """
    x, known = Task().sample(count, seed=2 + seed)
    model = adapted(family, arm, taught(family, angle, size), x, known, size.steps, seed)
    return FAMILIES[family].excess(model, Task())
