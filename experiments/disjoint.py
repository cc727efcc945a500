"""Gradients where supports do not meet: IKL against plain KL, and the levels that join modes.

    python -m experiments.disjoint [--draws N] [--plot PATH] [--json PATH]

Two laws of variance e at the distance delta. Plain KL is delta**2 / 2e, its gradient delta / e.
IKL in units of w(s) ds, s = sigma**2, is finite as e -> 0 only if the integral of w(s) / s over
small s is: with w = 1 it still grows like log 1/e, with the weight of the authors' code (IKL with
`power: 2` under log-normal levels) it tends to delta**2 / 2, the loss of least squares. Measured by
the divergence the trainer uses, on drawn samples, beside the exact value; the bias is the
difference in standard errors.

Then a Gaussian student on one mode of two: with the weight sigma**2 d log sigma on [0.05,
sigma_max] it leaves that mode only if sigma_max reaches the level where the mixture is almost
Gaussian.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from scipy import integrate, stats
from torch import Tensor

from benchmarks.harness import Rows, command
from distill.divergences import IKL, Divergence
from instil.base.draws import Draws
from instil.base.levels import KarrasUniform, Levels, LogNormal
from instil.base.runs.report import show
from instructors.analytic import Mixture, gaussian, mixture

LOW, HIGH = 1e-6, 80.0  # of the levels of the first part
VARIANCES = (1.0, 1e-2, 1e-4, 1e-6, 1e-8)
DISTANCES = (1.0, 2.0, 8.0)
LEVELS: dict[str, tuple[IKL, Levels]] = {
    "lognormal(-1.2, 1.2)": (IKL(), LogNormal()),
    "lognormal, sigma > 0.1": (IKL(), LogNormal(sigma_min=0.1)),
    "SiD's range": (IKL(), KarrasUniform(t_min=0.2, sigma_min=0.002)),
    "lognormal, power 0": (IKL(power=0.0), LogNormal()),
}


def measured(
    divergence: Divergence, levels: Levels, delta: float, variance: float, count: int
) -> tuple[float, float, float]:
    """Mean and standard error of the gradient at the student's mean, and its root mean square."""
    law, student = (
        gaussian(torch.full((1,), mean).double(), torch.full((1, 1), variance).double())
        for mean in (0.0, delta)
    )
    draws = Draws.of_range(0, 0, 0, count)
    sample = delta + math.sqrt(variance) * draws.normal("sample", (1,), torch.float64)
    sigma = levels.sample(draws.uniform("sigma"), LOW, HIGH)
    found = _gradients(divergence, sample, sigma, draws, law, student)[:, 0]
    error = found.std() / math.sqrt(count)
    return found.mean().item(), error.item(), found.square().mean().sqrt().item()


def exact(power: float, levels: Levels, delta: float, variance: float) -> float:
    """Its expectation, delta * E[sigma**power / (variance + sigma**2)], by quadrature over u."""

    def integrand(u: float) -> float:
        sigma = levels.sample(torch.tensor([u], dtype=torch.float64), LOW, HIGH).item()
        return delta * sigma**power / (variance + sigma**2)

    # Substituting the normal's own distribution function opens the ends where levels are small.
    value, _ = integrate.quad(
        lambda z: integrand(float(stats.norm.cdf(z))) * float(stats.norm.pdf(z)), -8, 8, limit=400
    )
    return value


def supports(count: int) -> tuple[Rows, list[dict[str, Any]]]:
    """The first table."""
    facts: list[dict[str, Any]] = []
    for delta in DISTANCES:
        for variance in VARIANCES:
            for name, (divergence, levels) in LEVELS.items():
                mean, error, size = measured(divergence, levels, delta, variance, count)
                truth = exact(divergence.power, levels, delta, variance)
                facts.append(
                    {
                        "delta": delta,
                        "variance": variance,
                        "levels": name,
                        "plain_kl": delta / variance,
                        "gradient": mean,
                        "standard_error": error,
                        "root_mean_square": size,
                        "exact": truth,
                        "bias_in_standard_errors": (mean - truth) / max(error, 1e-12 * abs(truth)),
                    }
                )
    rows = [
        {
            "delta": f"{f['delta']:g}",
            "variance": f"{f['variance']:g}",
            "plain KL": f"{f['plain_kl']:.3g}",
            "levels of IKL": f["levels"],
            "gradient": f"{f['gradient']:.4g} ± {f['standard_error']:.1g}",
            "exact": f"{f['exact']:.4g}",
            "bias / s.e.": f"{f['bias_in_standard_errors']:.1f}",
        }
        for f in facts
        if f["delta"] == 2.0
    ]
    return rows, facts


def escape(sigma_max: float, law: Mixture) -> tuple[float, float]:
    """Where gradient descent takes the Gaussian student: mean and variance."""
    nodes, weights = (torch.from_numpy(a) for a in _hermite(16))
    grid = torch.linspace(math.log(0.05), math.log(sigma_max), 25, dtype=torch.float64)
    pairs = torch.cartesian_prod(nodes, nodes, grid)
    unit, noise, sigma = pairs[:, :1], pairs[:, 1:2], pairs[:, 2].exp()
    step = torch.full_like(grid, (grid[1] - grid[0]).item())
    step[[0, -1]] /= 2
    share = torch.cartesian_prod(weights, weights, step).prod(1, keepdim=True)
    mean, log_std = torch.tensor([3.0, math.log(0.5)], dtype=torch.float64)
    velocity = torch.zeros(2, dtype=torch.float64)  # heavy ball: the mode is left very slowly
    for _ in range(2000):
        sample = mean + log_std.exp() * unit
        student = gaussian(mean[None], log_std.exp()[None, None] ** 2)
        noisy = sample + sigma[:, None] * noise
        gap = student(noisy, sigma) - law(noisy, sigma)
        gradient = share * gap
        slope = torch.stack([gradient.sum(), (gradient * unit).sum() * log_std.exp()])
        velocity = 0.9 * velocity - 0.5 / max(1.0, 0.5 * sigma_max**2) * slope
        mean, log_std = mean + velocity[0], log_std + velocity[1]
    return mean.item(), (2 * log_std).exp().item()


def remaining(sigma: float, law: Mixture) -> float:
    """KL(mixture + noise || Gaussian of the same moments) in nats, by quadrature."""
    spread = math.sqrt(9.25 + sigma**2)
    x = torch.linspace(-60, 60, 60_001, dtype=torch.float64)
    log_p = law.log_density(x[:, None], torch.full_like(x, sigma))
    log_g = torch.distributions.Normal(0.0, spread).log_prob(x)
    return torch.trapezoid(log_p.exp() * (log_p - log_g), x).item()


def modes() -> tuple[Rows, list[dict[str, float]]]:
    """The second table."""
    law = mixture(
        torch.ones(2).double(),
        torch.tensor([[-3.0], [3.0]]).double(),
        torch.full((2, 1, 1), 0.25).double(),
    )
    facts = []
    for sigma_max in (1.0, 1.5, 2.0, 2.5, 3.0, 5.0):
        mean, variance = escape(sigma_max, law)
        facts.append(
            {
                "sigma_max": sigma_max,
                "mean": mean,
                "variance": variance,
                "remaining_nats": remaining(sigma_max, law),
            }
        )
    rows = [
        {
            "sigma_max": f"{f['sigma_max']:g}",
            "KL to a Gaussian there": f"{f['remaining_nats']:.4f} nats",
            "student's mean": f"{f['mean']:.3f}",
            "its variance": f"{f['variance']:.3f}",
        }
        for f in facts
    ]
    return rows, facts


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Both tables."""
    mode_rows, mode_facts = modes()
    show(
        "A Gaussian student started on the mode at 3 of two, at -3 and 3, of variance 1/4",
        mode_rows,
    )
    rows, facts = supports(arguments.draws)
    if arguments.plot:
        _plot(facts, arguments.plot)
    return rows, {"supports": facts, "modes": mode_facts}


def _gradients(
    divergence: Divergence,
    sample: Tensor,
    sigma: Tensor,
    draws: Draws,
    law: Mixture,
    student: Mixture,
) -> Tensor:
    """(N, 1) gradients of the divergence at the samples."""
    leaf = sample.clone().requires_grad_()
    noisy = sample + sigma[:, None] * draws.normal("noise", (1,), torch.float64)
    loss = divergence(leaf, sigma, law(noisy, sigma), student(noisy, sigma))
    (found,) = torch.autograd.grad(loss.sum(), leaf)
    return found


def _hermite(count: int) -> tuple[Any, Any]:
    """Nodes and weights of a standard normal."""
    from numpy.polynomial.hermite_e import hermegauss

    nodes, weights = hermegauss(count)
    return nodes, weights / weights.sum()


def _plot(facts: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    chosen = [f for f in facts if f["delta"] == 2.0]
    x = [f["variance"] for f in chosen if f["levels"] == next(iter(LEVELS))]
    axis.plot(x, [2.0 / v for v in x], "k--", label="plain KL, exact")
    for name in LEVELS:
        mine = [f for f in chosen if f["levels"] == name]
        (line,) = axis.plot(x, [f["exact"] for f in mine], label=f"IKL, {name}")
        axis.plot(x, [f["gradient"] for f in mine], "o", color=line.get_color())
    axis.set(xscale="log", yscale="log", xlabel="variance of both laws (distance 2)")
    axis.set(ylabel="gradient at the student's mean")
    axis.invert_xaxis()
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    options: dict[str, dict[str, Any]] = {
        "--draws": {"type": int, "default": 200_000, "help": "samples [%(default)s]"},
        "--plot": {"type": Path, "metavar": "PNG"},
    }
    sys.exit(command(run, "Gradient at the student's mean, distance 2", options))
