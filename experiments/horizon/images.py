"""Experiments on the diffusion horizon with images: 002.8 and 002.9."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eval.answer import Rows
from eval.cross_fitting import Losses, paired_losses, reference_law
from eval.curves import noise_levels
from eval.horizon.certificate import Horizon, horizon
from eval.horizon.recipes import fit
from eval.quality import features, metrics
from eval.vae import models
from eval.vae.bound import VAEBound, vae_bound
from eval.vae.models import MLP
from experiments.experiment import Experiment
from experiments.vectors import start_of
from instil.base import data
from instil.base.config import load_recipe
from instil.base.draws import Draws
from instructors.denoiser import Denoiser, class_labels, labelled
from instructors.sampler import heun
from instructors.training import RECIPES
from instructors.training.train import TrainRecipe

Found = tuple[Rows, dict[str, Any]]


def vae_terms(train: Tensor, test: Tensor, epochs: tuple[int, ...]) -> list[VAEBound]:
    """The bound of `eval.vae.bound` after so many epochs of one training.

    Args:
        train: (N, size) in [0, 1].
        test: (M, size).
        epochs: Rising.
    """
    torch.manual_seed(0)
    model = MLP(tuple(train.shape[1:]))
    initial = {name: each.detach().clone() for name, each in model.decoder.named_parameters()}
    return [
        vae_bound(model.encode, model.decoder, initial, train, test, weight_noise=0.05)
        for epoch in models.fit(model, train, epochs[-1])
        if epoch in epochs
    ]


def small_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Training and held-out images (N, 64) in [0, 1]; MNIST's too where INSTIL_DATA holds it."""
    train, test = data.load("digits").pixels, data.load("digits:held-out").pixels
    found = {"digits": (train.flatten(1).float() / 255, test.flatten(1).float() / 255)}
    root = os.environ.get("INSTIL_DATA")
    if root and next(Path(root).rglob("t10k-images-idx3-ubyte.gz"), None):
        pixels = data.load("mnist:test").pixels[:, :, 2:26, 2:26].float() / 255
        small = nn.functional.avg_pool2d(pixels, 3).flatten(1)
        found["mnist 8x8"] = small[:5000], small[5000:]
    return found


def vae_bound_across_epochs(scale: float) -> Found:
    """002.8."""
    epochs = (5, 20, 60, 120) if scale == 1 else (2, 8)
    rows: list[dict[str, str]] = []
    facts: dict[str, Any] = {"epochs": epochs}
    holds = []
    for name, (train, test) in small_images().items():
        looks = epochs if name == "digits" else epochs[:3]
        terms = vae_terms(train, test, looks)
        for epoch, found in zip(looks, terms, strict=True):
            alone = found.reconstruction.value + found.encoder.value
            rows.append(
                {
                    "images": name,
                    "epoch": str(epoch),
                    "reconstruction": f"{found.reconstruction.value:.4f}",
                    "encoder": f"{found.encoder.value:.3f}",
                    "generator": f"{found.generator:.3f}",
                    "bound": f"{found.total:.3f}",
                    "encoder-only": f"{alone:.3f}",
                    "left side, measured": f"{found.direct.value:.4f}",
                }
            )
            facts[f"{name} {epoch}"] = {
                "total": found.total,
                "generator": found.generator,
                "encoder_only": alone,
                "direct": found.direct.value,
                "vacuous": found.vacuous,
            }
        rising = [each.generator for each in terms]
        holds.append(all(each.direct.value <= each.total for each in terms))
        holds.append(rising == sorted(rising))
    return rows, facts | {"holds": all(holds)}


def limited(denoiser: Denoiser, high: float) -> Denoiser:
    """The same network, claimed for levels up to `high` only: where a sampler starts."""
    other = copy.copy(denoiser)
    other.sigma_max = high
    return other


def distance_by_start(
    denoiser: Denoiser, train: data.Images, starts: tuple[float, ...], count: int
) -> list[float]:
    """FD of samples from the training digits, started at T from the moment-matched Gaussian."""
    reference = metrics.load_reference("digits", features.load("digits", None, "cpu"))
    law, found = reference_law("gaussian", train.pixels), []
    for top in starts:
        parts = []
        begin = start_of(law, count, top) / top
        labels = class_labels(denoiser.classes, torch.arange(count))
        for rows in torch.arange(count).split(500):
            parts.append(heun(limited(denoiser, top), begin[rows], 12, labels.rows(rows)))
        found.append(metrics.distance(data.to_uint8(torch.cat(parts)), reference))
    return found


def certificate(
    denoiser: Denoiser, train: data.Images, held_out: data.Images, draws: int
) -> Horizon:
    """On held-out images, with the loss on the training images beside."""
    law, levels = reference_law("gaussian", train.pixels), noise_levels(0.02, denoiser.sigma_max)
    pairs = []
    for some in (held_out, train.select(torch.arange(min(len(train), len(held_out))))):
        condition = labelled(some.labels)
        pairs.append(
            paired_losses(denoiser, law, some.pixels, levels, condition, noise_draws=draws)
        )
    return horizon(Losses(*pairs[0], pairs[1][0]))


def digits_horizon(scale: float) -> Found:
    """002.9."""
    recipe = load_recipe(TrainRecipe, "digits", [], RECIPES)
    steps, count = round(scale * recipe.steps / 4), 400 if scale == 1 else 300
    starts = (0.5, 2.0, 14.0) if scale == 1 else (0.5, 14.0)
    whole, held_out = data.load("digits"), data.load("digits:held-out")
    held_out = held_out if scale == 1 else held_out.select(torch.arange(200))
    order = Draws.of_range(0, 0, 0, len(whole)).uniform("subset").argsort()
    rows: list[dict[str, str]] = []
    facts: dict[str, Any] = {"starts": starts}
    for size in (50, 200, 1000) if scale == 1 else (50, 1000):
        train = whole.select(order[:size].sort().values)
        denoiser = fit(recipe.replace(steps=steps, batch=64), train, Accelerator(cpu=True))
        found = certificate(denoiser, train, held_out, draws=1)
        distances = distance_by_start(denoiser, train, starts, count)
        gap = found.memorization_gap
        rows.append(
            {
                "n": str(size),
                "T_opt": str(found.best),
                "T_eps": str(found.sufficient),
                "gain": str(found.gain),
                "memorization gap": str(gap),
            }
            | {f"FD, T = {top:g}": f"{d:.2f}" for top, d in zip(starts, distances, strict=True)}
        )
        facts[str(size)] = {
            "T_opt": found.best.value,
            "T_eps": found.sufficient.value,
            "gain": found.gain.value,
            "memorization_gap": None if gap is None else gap.value,
            "fd": distances,
            "sigma": found.sigmas.tolist(),
            "nats": found.nats.tolist(),
        }
    least, most = facts["50"], facts["1000"]
    # After few updates no model beats the moments of many images, so that their gain is 0.
    grows = scale < 1 or most["gain"] > least["gain"]
    falls = least["memorization_gap"] > most["memorization_gap"]
    return rows, facts | {"holds": grows and falls and most["fd"][-1] < most["fd"][0]}


EXPERIMENTS = {
    "002.8": Experiment(
        "a VAE's bound holds with the generator's term, which grows as it is trained",
        vae_bound_across_epochs,
        1.0,
    ),
    "002.9": Experiment(
        "digits: the certificate grows and the memorization gap falls with n",
        digits_horizon,
        4.0,
    ),
}
