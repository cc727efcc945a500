"""Latent reuse (arXiv 2605.13448) with linear latent spaces: what the exact laws say, measured."""

import math
from typing import Any

import torch
from torch import Tensor

from eval.answer import Rows
from eval.curves import denoising_loss_curve, loss_gap
from eval.latents.reuse import ARMS, arms, principal_space, shared_size
from experiments.experiment import Experiment
from experiments.latents.laws import (
    LatentDenoiser,
    angle_score_error,
    latent_score_error,
    shared_dimension,
)
from instil.base import data
from instil.base.draws import Draws
from instil.base.levels import LogUniform
from instructors.adapters.karras import Karras
from instructors.analytic import empirical, fit_gaussian, gaussian
from instructors.denoiser import Denoiser
from instructors.mlp import MLP
from instructors.training.denoising import denoising_loss

D, K, SIGNAL, NOISE = 12, 3, 2.0, 0.09  # features, directions and variances of the synthetic law
ANGLES = torch.tensor([0.2, 0.6, 1.1], dtype=torch.float64)


def planes(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (D, K) with these principal angles."""
    unit = torch.eye(D, dtype=torch.float64)
    return unit[:, :K], unit[:, :K] * angles.cos() + unit[:, K : 2 * K] * angles.sin()


def spiked(basis: Tensor, signal: float = SIGNAL, noise: float = NOISE) -> Tensor:
    """The covariance of signal in a subspace and isotropic noise."""
    return signal * basis @ basis.mT + noise * torch.eye(len(basis), dtype=torch.float64)


def drawn(covariance: Tensor, count: int, seed: int) -> Tensor:
    """(count, d) samples of a centred Gaussian."""
    root = torch.linalg.cholesky(covariance)
    unit = Draws.of_range(seed, 0, 0, count).normal("x", (len(covariance),), torch.float64)
    return unit @ root.mT


def halves(images: data.Images, seed: int) -> tuple[Tensor, Tensor]:
    """(N, d) float64 images in [-1, 1] in random order: 700 to learn from, and the rest."""
    order = Draws.of_range(seed, 0, 0, len(images)).uniform("split").argsort()
    flat = data.to_float(images.pixels[order]).flatten(1).double()
    return flat[:700], flat[700:]


def least_squares(samples: Tensor, sigma: float) -> Tensor:
    """(m, m) map of least |x - W (x + sigma n)|^2 over samples (N, m), for all noise at once."""
    second = samples.mT @ samples / len(samples)
    return torch.linalg.solve(second + sigma**2 * torch.eye(len(second)).double(), second).mT


def angle_sweep(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.1: linear denoisers by least squares against the law in angles."""
    count = max(2000, round(20_000 * scale))
    degrees = [0, 15, 30, 45, 60, 75, 90]
    sigmas = [0.05, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0]
    signal, _ = planes(ANGLES)
    covariance = spiked(signal)
    train, held_out = drawn(covariance, count, 0), drawn(covariance, count, 1)
    measured = torch.zeros(len(degrees), len(sigmas), dtype=torch.float64)
    law = torch.zeros_like(measured)
    ambient = torch.zeros_like(measured)
    second = held_out.mT @ held_out / count
    for k, sigma in enumerate(sigmas):
        whole = least_squares(train, sigma)
        noisy = second + sigma**2 * torch.eye(D, dtype=torch.float64)
        for i, degree in enumerate(degrees):
            angles = torch.full((K,), math.radians(degree), dtype=torch.float64)
            latent = planes(angles)[1]
            apart = whole - latent @ least_squares(train @ latent, sigma) @ latent.mT
            measured[i, k] = (apart @ noisy @ apart.mT).trace() / sigma**4
            parts = angle_score_error(angles, SIGNAL, NOISE, D, sigma)
            law[i, k], ambient[i, k] = sum(parts), parts[1]
    worst = (measured / law - 1).abs().max().item()

    def slope(x: Tensor, y: Tensor) -> float:
        return ((y[-1] / y[0]).log() / (x[-1] / x[0]).log()).item()

    sines = torch.tensor([math.sin(math.radians(d)) for d in (15, 90)])
    levels = torch.tensor(sigmas, dtype=torch.float64)
    slopes = {
        "in sin(angle)": slope(sines, (measured - ambient)[[1, 6], 0]),
        "in sigma, low": slope(levels[:2], measured[3, :2]),
        "in sigma, high": slope(levels[5:], measured[3, 5:]),
    }
    rows = [
        {"angle": f"{degree}°"}
        | {
            f"sigma {sigma:g}": f"{measured[i, k]:.3g} ({law[i, k]:.3g})"
            for k, sigma in enumerate(sigmas)
            if k % 2 == 0
        }
        for i, degree in enumerate(degrees)
    ]
    near = [
        abs(found - want) < 0.3 for found, want in zip(slopes.values(), (2, -4, -6), strict=True)
    ]
    facts = {"holds": worst < 0.03 and all(near), "worst": worst, "slopes": slopes}
    return rows, facts | {"measured": measured.tolist(), "law": law.tolist()}


def fit_network(samples: Tensor, steps: int, seed: int) -> Denoiser:
    """A small network trained to denoise vectors (N, m), its learning rate falling to zero."""
    torch.manual_seed(seed)
    scale = samples.std().item()
    network = Karras(MLP(samples.shape[1], 64, 2), samples.shape[1:], 0.02, 50, sigma_data=scale)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    levels = LogUniform()
    for step in range(steps):
        draws = Draws.of_range(seed, step, 0, 256)
        clean = samples[draws.integers("row", len(samples))].float()
        sigma = levels.sample(draws.uniform("sigma").float(), 0.03, 15.0)
        noise = draws.normal("noise", tuple(clean.shape[1:]))
        denoised = network(clean + sigma[:, None] * noise, sigma)
        loss = denoising_loss(denoised, clean, network.weight(sigma)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def trained_network(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.2: a network trained in a frozen space never beats the law; the rest is estimation."""
    steps = max(150, round(4000 * scale))
    signal, latent = planes(ANGLES)
    covariance = spiked(signal)
    sigmas = torch.tensor([0.05, 0.1, 0.3, 1.0, 3.0, 10.0], dtype=torch.float64)
    exact = gaussian(torch.zeros(D), covariance.float())
    inside = gaussian(torch.zeros(K), (latent.mT @ covariance @ latent).float())
    best = LatentDenoiser(inside, latent.float(), torch.zeros(D))
    held_out = drawn(covariance, 4000, 1).float()
    law = latent_score_error(covariance, latent, sigmas) * sigmas**4
    rows: list[dict[str, str]] = [
        {"": "law"} | {f"sigma {s:g}": f"{v:.4g}" for s, v in zip(sigmas, law, strict=True)}
    ]
    facts: dict[str, Any] = {"sigmas": sigmas.tolist(), "law": law.tolist()}
    holds = True
    for count in (100, 20_000):
        inner = fit_network(drawn(covariance, count, 0) @ latent, steps, 0)
        frozen = LatentDenoiser(inner, latent.float(), torch.zeros(D))
        excess = torch.empty(len(held_out), len(sigmas), dtype=torch.float64)
        for k, level in enumerate(sigmas.tolist()):
            noise = Draws.of_range(12, k, 0, len(held_out)).normal("n", (D,))
            sigma = noise.new_full((len(noise),), level)
            noisy = held_out + level * noise
            errors = [
                (each(noisy, sigma) - exact(noisy, sigma)).square().sum(1).double()
                for each in (frozen, best)
            ]
            excess[:, k] = errors[0] - errors[1]
        found, error = excess.mean(0), excess.std(0) / math.sqrt(len(held_out))
        holds = holds and bool((found > -3 * error).all())
        name = f"network of {count} samples"
        cells = zip(sigmas, found, error, strict=True)
        rows.append({"": name} | {f"sigma {s:g}": f"+{v:.2g} ± {e:.0g}" for s, v, e in cells})
        facts[name] = {"excess": found.tolist(), "stderr": error.tolist()}
    few, many = (sum(each["excess"]) for each in list(facts.values())[2:])
    return rows, {"holds": holds and few > many, **facts}


def digits_law(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.3: the law of Gaussians on real digits, beside linear and kernel denoisers."""
    source = data.to_float(data.load("digits:all:0-4").pixels).flatten(1).double()
    train, held_out = halves(data.load("digits:all:5-9"), 0)
    space, sigmas = principal_space([source], 16), [0.5, 1.0, 2.0, 4.0]
    apart = held_out - held_out.mean(0)
    covariance = apart.mT @ apart / len(held_out)
    offset = held_out.mean(0) - space.offset
    levels = torch.tensor(sigmas, dtype=torch.float64)
    law = latent_score_error(covariance, space.basis, levels, offset=offset) * levels**4
    wide = {"sigma_max": 1e3}
    linear = LatentDenoiser(fit_gaussian(space.encode(train), **wide), space.basis, space.offset)
    kernel = empirical(space.encode(train), 0.35)
    pairs = {
        "linear denoisers": (linear, fit_gaussian(train)),
        "kernel denoisers": (
            LatentDenoiser(kernel, space.basis, space.offset),
            empirical(train, 0.35),
        ),
    }
    rows: list[dict[str, str]] = [
        {"sigma^4 error": "law"}
        | {f"s = {v**2:g}": f"{e:.2f}" for v, e in zip(sigmas, law, strict=True)}
    ]
    facts: dict[str, Any] = {"sigmas": sigmas, "law": law.tolist()}
    for name, pair in pairs.items():
        draws = max(2, round(16 * scale))
        gap = loss_gap(
            *(denoising_loss_curve(each, held_out, sigmas, noise_draws=draws) for each in pair)
        )
        found, error = gap.mean(), gap.stderr()
        cells = zip(sigmas, found, error, strict=True)
        rows.append(
            {"sigma^4 error": name} | {f"s = {v**2:g}": f"{g:.2f} ± {e:.1g}" for v, g, e in cells}
        )
        facts[name] = {"error": found.tolist(), "stderr": error.tolist()}
    ratio = torch.tensor(facts["linear denoisers"]["error"]) / law
    return rows, {"holds": bool(((ratio - 1).abs() < 0.15).all()), **facts}


def winner_by_size(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.4: with 40 target digits, which space leaves out least depends on its size."""
    seeds = range(max(3, round(5 * scale)))
    source = data.to_float(data.load("digits:all:0-4").pixels).flatten(1).double()
    rows, winners = [], []
    for seed in seeds:
        train, held_out = halves(data.load("digits:all:5-9"), seed)
        few, found = train[:40], {}
        total = (held_out - held_out.mean(0)).square().sum()
        for dim in (8, 16, 32):
            for arm, space in arms(source, few, dim).items():
                lost = space.squares(held_out) - space.encode(held_out).square().sum(1)
                found[dim, arm] = (lost.sum() / total).item()
        best = {dim: min(ARMS, key=lambda arm: found[dim, arm]) for dim in (8, 16, 32)}
        winners.append(best)
        rows.append(
            {"seed": str(seed)}
            | {
                f"m = {dim}: reuse / mix / relearn": " / ".join(
                    f"*{found[dim, arm]:.3f}" if arm == best[dim] else f"{found[dim, arm]:.3f}"
                    for arm in ARMS
                )
                for dim in (8, 16, 32)
            }
        )
    changes = sum(len(set(best.values())) > 1 for best in winners)
    facts = {"winners": winners, "seeds_where_it_changes": changes}
    return rows, {"holds": 2 * changes > len(winners), **facts}


def shared_sizes(scale: float) -> tuple[Rows, dict[str, Any]]:
    """001.6: the size two domains share grows by one for every angle, also from samples."""
    count, sigma, nats = max(2000, round(20_000 * scale)), math.sqrt(0.05), 0.05
    rows, holds, facts = [], True, {}
    for tilted in range(K + 1):
        angles = ANGLES * (torch.arange(K) >= K - tilted)
        covariances = [spiked(basis, 2.0, 1e-3) for basis in planes(angles)]
        exact = shared_dimension(covariances[0], covariances[1], sigma, nats)
        domains = [(drawn(c, count, 1), drawn(c, count, 2)) for c in covariances]
        found = shared_size(domains[0], domains[1], sigma, nats)
        sizes = slice(K - 1, 2 * K)
        off = (found.target[sizes] - exact.target[sizes]).abs() / found.target_stderr[sizes]
        holds = holds and found.dim == exact.dim == K + tilted and bool((off < 4).all())
        prices = zip(exact.target[sizes], found.target[sizes], strict=True)
        rows.append(
            {"angles above 0": str(tilted), "m*": str(exact.dim), "from samples": str(found.dim)}
            | {
                f"price at m = {K + i}": f"{law:.3g} ({mean:.3g})"
                for i, (law, mean) in enumerate(prices)
            }
        )
        facts[f"{tilted} angles"] = {"law": exact.dim, "samples": found.dim}
    return rows, {"holds": holds, **facts}


EXPERIMENTS = {
    "001.1": Experiment("the error of a frozen space follows the law in angles", angle_sweep, 0.2),
    "001.2": Experiment("a network trained in the space never beats the law", trained_network, 1.0),
    "001.3": Experiment("the Gaussian law describes real digits", digits_law, 0.2),
    "001.4": Experiment(
        "reuse, mix or relearn: the winner changes with the size", winner_by_size, 0.1
    ),
    "001.6": Experiment("the shared size is k plus the angles above zero", shared_sizes, 0.2),
}
