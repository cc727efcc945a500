"""What would data buy? Beside the data-free student, students of the same instructor that see some.

    python -m experiments.data_driven [--steps N] [--seeds K] [--json PATH]

pairs        regression on (noise, endpoint of the instructor's Heun sampler), no score gap
real         data-free, and the student denoises real images at its own level
adversarial  data-free, and a discriminator tells noisy real images from noisy samples

All take the same updates of the same batch; the table has their seconds. Only this benchmark reads
images in training: `distill` stays data-free.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.harness import Rows, command
from distill.__main__ import RECIPES
from distill.build import build
from distill.recipe import Recipe
from distill.trainer import State, train
from eval.quality.evaluator import Evaluator
from eval.quality.images import student_sampler
from instil.base import data
from instil.base.average import Average
from instil.base.config import load_recipe
from instil.base.draws import Draws
from instil.base.runs.monitor import note
from instil.base.shapes import expand
from instructors.denoiser import class_labels
from instructors.instructor import Instructor
from instructors.load import load
from instructors.sampler import heun

PAIRS = 10_000
Extra = Callable[[State], None]


class Discriminator(nn.Module):
    """Noisy images (B, C, H, W) with labels to logits (B,), by projection of the label."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head, self.label = nn.Linear(2 * width, 1), nn.Embedding(classes, 2 * width)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.body(images)
        return self.head(features)[:, 0] + (features * self.label(labels)).sum(1)


def data_free(state: State) -> None:
    """Nothing is added."""


def real(images: data.Images, recipe: Recipe) -> Extra:
    """A denoising update of the student on real images, at the level it is read at."""
    adam = None

    def update(state: State) -> None:
        nonlocal adam
        adam = adam or recipe.optimizer.build(state.student)
        clean, labels, draws = _batch(images, recipe, state.step)
        student: Any = state.student
        sigma = clean.new_full((len(clean),), student.sigma)
        noisy = clean + student.sigma * draws.normal("noise", images.shape)
        denoised = student.denoiser(noisy, sigma, class_labels(student.classes, labels))
        (student.denoiser.weight(sigma) * _square(denoised - clean)).mean().backward()
        recipe.optimizer.update(adam, state.step, recipe.train.steps)

    return update


def adversarial(images: data.Images, recipe: Recipe, sigma_max: float = 1.0) -> Extra:
    """A step of a discriminator on noisy images, and one of the student against it."""
    judge = Discriminator(images.shape[0], len(images.classes))
    judge_adam = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.0, 0.99))
    adam = None

    def update(state: State) -> None:
        nonlocal adam
        adam = adam or recipe.optimizer.build(state.student)
        clean, labels, draws = _batch(images, recipe, state.step)
        latent = state.student.prior(draws)
        sample = state.student(latent, class_labels(state.student.classes, labels))
        sigma = expand(sigma_max * draws.uniform("sigma").to(clean.dtype), clean)
        noises = [sigma * draws.normal(name, images.shape) for name in ("noise-0", "noise-1")]
        true = judge(clean + noises[0], labels)
        false = judge(sample.detach() + noises[1], labels)
        (nn.functional.softplus(-true) + nn.functional.softplus(false)).mean().backward()
        judge_adam.step()
        nn.functional.softplus(-judge(sample + noises[1], labels)).mean().backward()
        judge_adam.zero_grad()
        recipe.optimizer.update(adam, state.step, recipe.train.steps)

    return update


def distilled(recipe: Recipe, instructor: Instructor, extra: Extra) -> State:
    """The data-free loop with something added after each update."""
    state = build(recipe, instructor)
    for _ in train(state, instructor.denoiser, recipe, Accelerator(cpu=True)):
        extra(state)
    return state


def regressed(recipe: Recipe, instructor: Instructor) -> State:
    """Regression on pairs, in the same state."""
    pairs = _pairs(instructor)
    state = build(recipe, instructor)
    student = state.student
    for step in range(recipe.train.steps):
        draws = Draws.of_range(recipe.train.seed, step, 0, recipe.train.batch)
        rows = draws.integers("row", len(pairs[0]))
        latent, endpoint, labels = (column[rows] for column in pairs)
        sample = student((latent,), class_labels(student.classes, labels))
        _square(sample - endpoint).mean().backward()
        recipe.optimizer.update(state.student_optimizer, step, recipe.train.steps)
        for average in state.averages:
            average.update(student, (step + 1) * recipe.train.batch, recipe.train.batch)
    return state


def measured(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """All four ways from one seed."""
    recipe = load_recipe(Recipe, "digits", [f"train.steps={steps}", f"train.seed={seed}"], RECIPES)
    instructor = load(recipe.instructor)
    evaluator = Evaluator(recipe.evaluation, instructor, torch.device("cpu"))
    images = data.load("digits:train")
    torch.manual_seed(seed)
    ways: dict[str, Callable[[], State]] = {
        "data-free": lambda: distilled(recipe, instructor, data_free),
        "pairs": lambda: regressed(recipe, instructor),
        "real": lambda: distilled(recipe, instructor, real(images, recipe)),
        "adversarial": lambda: distilled(recipe, instructor, adversarial(images, recipe)),
    }
    facts = {}
    for name, way in ways.items():
        note(f"{name}, seed {seed}")
        began = time.perf_counter()
        average: Average[Any] = way().averages[0]
        seconds = time.perf_counter() - began
        found = evaluator.score(student_sampler(average.module))
        facts[name] = {key: found[key]["mean"] for key in ("fd", "recall", "copies")}
        facts[name]["seconds"] = seconds
    return facts


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The table of all four."""
    torch.set_num_threads(arguments.threads)
    seeds = [measured(seed, arguments.steps) for seed in range(arguments.seeds)]
    facts = {
        name: {key: [each[name][key] for each in seeds] for key in seeds[0][name]}
        for name in seeds[0]
    }
    rows = [
        {
            "training": name,
            "FD": f"{statistics.mean(f['fd']):.3f} ({min(f['fd']):.3f} to {max(f['fd']):.3f})",
            "recall": f"{statistics.mean(f['recall']):.3f}",
            "copies": f"{statistics.mean(f['copies']):.3f}",
            "seconds": f"{statistics.mean(f['seconds']):.0f}",
        }
        for name, f in facts.items()
    ]
    return rows, {"ways": facts, "steps": arguments.steps}


def _batch(images: data.Images, recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Draws]:
    """Real images (B, *shape) in [-1, 1], their labels (B,), and numbers unused elsewhere."""
    draws = Draws.of_range(recipe.train.seed + 1000, step, 0, recipe.train.batch)
    chosen = images.select(draws.integers("row", len(images)))
    labels = chosen.labels if chosen.labels is not None else torch.zeros(len(chosen)).long()
    return data.to_float(chosen.pixels), labels, draws


def _square(error: Tensor) -> Tensor:
    return error.square().flatten(1).sum(1)


@torch.no_grad()
def _pairs(instructor: Instructor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, endpoint and label of the instructor's sampler."""
    denoiser, parts = instructor.denoiser, []
    for first in range(0, PAIRS, 250):
        draws = Draws.of_range(7, 0, first, 250)
        latent, labels = draws.normal("latent", denoiser.shape), draws.index % denoiser.classes
        endpoint = heun(denoiser, latent, 18, class_labels(denoiser.classes, labels))
        parts.append((latent, endpoint, labels))
    noise, endpoints, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return noise, endpoints, labels


if __name__ == "__main__":
    options: dict[str, dict[str, Any]] = {
        "--steps": {"type": int, "default": 500, "help": "student updates [%(default)s]"},
        "--seeds": {"type": int, "default": 1, "help": "training seeds [%(default)s]"},
        "--threads": {"type": int, "default": 2, "help": "of the processor [%(default)s]"},
    }
    sys.exit(command(run, "The embedded digits, with and without data", options))
