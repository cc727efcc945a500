"""Latent reuse (arXiv 2605.13448) with non-linear autoencoders, on digits, MNIST and CIFAR-10."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eval.answer import Rows
from eval.curves import Estimate, cross_entropy, integrate_gap
from eval.latents.autoencoders import (
    Autoencoder,
    local_angles,
    reconstruct,
    reconstruction_kl_bound,
    residuals,
    reuse_sigma,
)
from eval.latents.reuse import sigma_within
from experiments.experiment import Experiment
from experiments.latents.laws import autoencoder_price
from instil.base import data
from instil.base.draws import Draws
from instructors.analytic import empirical, fit_gaussian


def dense(features: int, latents: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder for vectors, one hidden layer each."""
    encoder = nn.Sequential(nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, latents))
    decoder = nn.Sequential(nn.Linear(latents, 128), nn.SiLU(), nn.Linear(128, features))
    return encoder, decoder


def convolutional(shape: Sequence[int], latents: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder for images whose sides divide by 4."""
    channels, height, width = shape
    inner = (32, height // 4, width // 4)
    encoder = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(math.prod(inner), latents),
    )
    decoder = nn.Sequential(
        nn.Linear(latents, math.prod(inner)),
        nn.Unflatten(1, inner),
        nn.SiLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(16, channels, 4, 2, 1),
    )
    return encoder, decoder


def train(pair: tuple[nn.Module, nn.Module], sets: Sequence[Tensor], steps: int) -> Autoencoder:
    """Minimise the squared error; every set gives the same share of each batch of 64."""
    encoder, decoder = pair
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = Draws.of_range(0, step, 0, 64 // len(sets))
        parts = [each[rows.integers(f"set {k}", len(each))] for k, each in enumerate(sets)]
        clean = torch.cat(parts)
        loss = (decoder(encoder(clean)) - clean).square().flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for module in pair:
        module.eval().requires_grad_(False)
    return Autoencoder(encoder, decoder)


def domains(source: str, target: str, few: int) -> dict[str, list[Tensor]]:
    """The sets each arm learns from, in [-1, 1], and the target's held-out third."""
    first, second = (data.to_float(data.load(each).pixels) for each in (source, target))
    order = Draws.of_range(0, 0, 0, len(second)).uniform("split").argsort()
    cut = len(second) // 3
    learn, held_out = second[order[cut:]], second[order[:cut]]
    return {
        "reuse": [first],
        "mix": [first, learn[:few]],
        f"relearn of {few}": [learn[:few]],
        "relearn": [learn],
        "held out": [held_out],
    }


def digits(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.5: dense autoencoders on digits; the bound holds, and need not rank as the price does."""
    sets = domains("digits:all:0-4", "digits:all:5-9", 40)
    (learn,), (held_out,) = sets["relearn"], sets.pop("held out")
    learn, held_out = learn.flatten(1), held_out.flatten(1)
    sigmas = torch.logspace(0, 1.5, 13, dtype=torch.float64)
    ambient = cross_entropy(fit_gaussian(learn), held_out, sigmas[:1])
    rows, facts = [], {}
    for arm, each in sets.items():
        torch.manual_seed(0)
        found = train(dense(64, 16), [x.flatten(1) for x in each], max(200, round(6000 * scale)))
        rec = reconstruct(found, learn)
        gap = autoencoder_price(
            lambda samples: empirical(samples, 0.35), learn, rec, held_out, sigmas
        )
        price, lost = integrate_gap(gap), residuals(held_out, reconstruct(found, held_out))
        linear = (cross_entropy(fit_gaussian(rec), held_out, sigmas[:1]) - ambient)[:, 0]
        bound = Estimate.of(reconstruction_kl_bound(lost, 1.0)[:, 0])
        local = local_angles(found, held_out)
        facts[arm] = {
            "price": price.value,
            "stderr": price.stderr,
            "linear": Estimate.of(linear).value,
            "bound": bound.value,
            "outside": local.outside.value,
            "reuse_sigma": reuse_sigma(lost, 1.0),
        }
        rows.append(
            {
                "autoencoder": arm,
                "price from sigma 1": str(price),
                "by linear denoisers": str(Estimate.of(linear)),
                "bound": str(bound),
                "local sin²": str(local.outside),
                "sigma_reuse(1 nat)": f"{facts[arm]['reuse_sigma']:.2f}",
            }
        )
    bounded = all(f["price"] - 2 * f["stderr"] <= f["bound"] for f in facts.values())
    cheapest = min(facts, key=lambda arm: facts[arm]["price"]) == "relearn"
    return rows, {"holds": bounded and cheapest, **facts}


def images(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.7: convolutional autoencoders on images: above sigma_reuse one costs a nat at most."""
    rows, facts, bounded, gains = [], {}, True, True
    cases = [
        ("mnist:test:0-4", "mnist:test:5-9", 16),
        ("cifar10:test:animals", "cifar10:test:vehicles", 64),
    ]
    sigmas = torch.logspace(-1, 1.25, 19, dtype=torch.float64)
    for source, target, latents in cases:
        sets = domains(source, target, 200)
        (learn,), (held_out,) = sets["relearn"], sets.pop("held out")
        curves, ambient = {}, cross_entropy(fit_gaussian(learn), held_out, sigmas)
        for arm, each in sets.items():
            torch.manual_seed(0)
            pair = convolutional(learn.shape[1:], latents)
            found = train(pair, each, max(60, round(1500 * scale)))
            rec, lost = reconstruct(found, learn), residuals(held_out, reconstruct(found, held_out))
            price = cross_entropy(fit_gaussian(rec), held_out, sigmas) - ambient
            mean, error = price.mean(0), price.std(0) / math.sqrt(len(price))
            bound = reconstruction_kl_bound(lost, sigmas).mean(0)
            level, within = reuse_sigma(lost, 1.0), sigma_within(sigmas, mean, 1.0)
            curves[arm] = price
            bounded = bounded and bool((mean - 2 * error <= bound).all())
            bounded = bounded and within is not None and within <= level
            facts[f"{target} {arm}"] = {
                "price": mean.tolist(),
                "stderr": error.tolist(),
                "bound": bound.tolist(),
                "reuse_sigma": level,
                "within_from": within,
                "residual": lost.mean().item(),
            }
            cells = {
                f"from {sigmas[k]:.2g} (bound)": f"{Estimate.of(price[:, k])} ({bound[k]:.3g})"
                for k in (0, 8, 12)
            }
            rows.append(
                {"autoencoder": f"{target} {arm}"}
                | cells
                | {"sigma_reuse": f"{level:.2f}", "1 nat from": f"{within or math.nan:.2f}"}
            )
        dearer = Estimate.of(curves["reuse"][:, 0] - curves["relearn"][:, 0])
        facts[f"{target} reuse - relearn at 0.1"] = {"nats": dearer.value, "stderr": dearer.stderr}
        gains = gains and dearer.clear and dearer.value > 0
    return rows, {
        "holds": bounded and gains,
        "bounded": bounded,
        "sigmas": sigmas.tolist(),
        **facts,
    }


EXPERIMENTS = {
    "001.5": Experiment("autoencoders on digits: the bound holds, the price decides", digits, 1.5),
    "001.7": Experiment(
        "autoencoders on MNIST and CIFAR-10: within a nat above sigma_reuse", images, 6
    ),
}
