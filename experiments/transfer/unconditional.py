"""Transfer of a latent variable: the law of U from the source, a small map from the target."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eval.answer import Rows
from eval.curves import Estimate
from eval.distances import wasserstein2
from experiments.distances import density_distances
from experiments.experiment import Experiment
from instil.base.draws import Draws
from instil.base.early_stopping import EarlyStopping
from instil.base.optimizer import Adam
from instructors.analytic import mixture
from students.coupling_flow import CouplingFlow, fit

Found = tuple[Rows, dict[str, Any]]
WEIGHTS, MEANS, SPREADS = (0.4, 0.6), (-1.5, 1.5), (0.5, 0.8)
ADAPTER, SHAPE = 2, 3  # of the five parameters of two Gaussians, how many are scale and shift


class Laws(nn.Module):
    """Many mixtures of two Gaussians in one dimension: weights, means and variances (B, 2)."""

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        super().__init__()
        self.weights, self.means, self.variances = weights, means, variances

    @classmethod
    def truth(cls, count: int) -> "Laws":
        """The law itself, `count` times."""
        rows = [torch.tensor(each).double().expand(count, 2) for each in (WEIGHTS, MEANS, SPREADS)]
        return cls(rows[0], rows[1], rows[2] ** 2)

    def terms(self, x: Tensor) -> Tensor:
        """(B, N, 2) log of weight times density at x (B, N)."""
        apart = (x[..., None] - self.means[:, None]) ** 2 / self.variances[:, None]
        volume = (2 * math.pi * self.variances[:, None]).log()
        return self.weights[:, None].log() - 0.5 * (apart + volume)

    def sample(self, count: int, seed: int) -> Tensor:
        """(B, count)."""
        size = len(self.means)
        draws = Draws.of_range(seed, count, 0, size)
        first = draws.uniform("component", (count,)) < self.weights[:, :1]
        unit = draws.normal("unit", (count,), torch.float64)
        return torch.where(
            first,
            self.means[:, :1] + self.variances[:, :1].sqrt() * unit,
            self.means[:, 1:] + self.variances[:, 1:].sqrt() * unit,
        )

    def maximum_likelihood(self, x: Tensor, rounds: int = 200) -> "Laws":
        """All five parameters fitted to x (B, N) by expectation maximisation, from here on."""
        law = self
        for _ in range(rounds):
            share = law.terms(x).softmax(-1)
            total = share.sum(1)
            means = (share * x[..., None]).sum(1) / total
            spread = (share * (x[..., None] - means[:, None]) ** 2).sum(1) / total
            law = Laws(total / x.shape[1], means, spread)
        return law

    def adapted(self, x: Tensor, rounds: int = 200) -> "Laws":
        """Scale and shift alone fitted to x (B, N): of c x + e, which has the law as it is."""
        c, e = x.new_ones(len(x)), x.new_zeros(len(x))
        for _ in range(rounds):
            share = self.terms(c[:, None] * x + e[:, None]).softmax(-1) / self.variances[:, None]
            weight, pull = share.sum(-1), (share * self.means[:, None]).sum(-1)
            total = weight.sum(1)
            center, aim = (weight * x).sum(1) / total, pull.sum(1) / total
            apart = x - center[:, None]
            a, b = (weight * apart**2).sum(1), (pull * apart).sum(1)
            c = (b + (b**2 + 4 * a * x.shape[1]).sqrt()) / (2 * a)
            e = aim - c * center
        return Laws(
            self.weights, (self.means - e[:, None]) / c[:, None], self.variances / c[:, None] ** 2
        )

    def divergence_from_truth(self) -> Tensor:
        """(B,) KL of the truth from each, by quadrature."""
        grid = torch.linspace(-8, 9, 3401, dtype=torch.float64)[None]
        exact = Laws.truth(1).terms(grid).logsumexp(-1)
        found = self.terms(grid.expand(len(self.means), -1)).logsumexp(-1)
        return torch.trapezoid(exact.exp() * (exact - found), grid[0], dim=1)


def mixtures(source: int, target: int, repeats: int) -> dict[str, dict[str, Any]]:
    """KL of the target's law from scratch and from transfer: by counting, and simulated."""
    truth = Laws.truth(repeats)
    points = truth.sample(target, seed=2)
    shape = truth.maximum_likelihood(truth.sample(source, seed=1), rounds=30)
    fitted = {"scratch": truth.maximum_likelihood(points), "transfer": shape.adapted(points)}
    laws = {
        "scratch": (ADAPTER + SHAPE) / (2 * target),
        "transfer": ADAPTER / (2 * target) + SHAPE / (2 * source),
    }
    return {
        arm: {"law": laws[arm], "simulated": Estimate.of(each.divergence_from_truth())}
        for arm, each in fitted.items()
    }


class Affine(nn.Module):
    """A frozen flow seen through x = A u + b."""

    def __init__(self, flow: CouplingFlow) -> None:
        super().__init__()
        size = len(flow.center)
        self.flow = flow.requires_grad_(False)
        self.inverse = nn.Parameter(torch.eye(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        u = (x - self.shift) @ self.inverse.mT
        return self.flow.log_prob(u) + torch.linalg.slogdet(self.inverse)[1]

    @torch.no_grad()
    def sample(self, seeds: Sequence[int]) -> Tensor:
        """(len(seeds), d), sample k a function of seed k."""
        return torch.linalg.solve(self.inverse, self.flow.sample(seeds).mT).mT + self.shift

    @torch.no_grad()
    def start(self, x: Tensor, turns: int = 36) -> None:
        """The best of the maps that match the first two moments: those differ by a rotation.

        Args:
            x: (N, 2); their law may have several modes, between which no gradient leads.
            turns: Rotations tried, with and without a reflection.
        """
        u = self.flow.sample(range(2000))
        whiten, colour = (torch.linalg.cholesky(each.mT.cov()) for each in (x, u))
        found = []
        for turn in range(2 * turns):
            angle = torch.tensor(2 * math.pi * turn / turns)
            sign = 1 if turn < turns else -1
            first = torch.stack([angle.cos(), -sign * angle.sin()])
            rotation = torch.stack([first, torch.stack([angle.sin(), sign * angle.cos()])])
            inverse = colour @ rotation @ torch.linalg.inv(whiten)
            self.inverse.copy_(inverse)
            self.shift.copy_(x.mean(0) - torch.linalg.solve(inverse, u.mean(0)))
            found.append((self.log_prob(x).mean().item(), inverse, self.shift.clone()))
        _, inverse, shift = max(found, key=lambda each: each[0])
        self.inverse.copy_(inverse)
        self.shift.copy_(shift)

    def fit(self, x: Tensor, steps: int) -> "Affine":
        """By exact likelihood; no pairs of u and x are needed."""
        self.start(x)
        adam = Adam(lr=2e-2, betas=(0.9, 0.99), schedule="cosine")
        optimizer = adam.build(self)
        for step in range(steps):
            (-self.log_prob(x).mean()).backward()
            adam.update(optimizer, step, steps)
        return self


def ring(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 2) samples of U, five Gaussians on a circle, and their log-density (count,)."""
    angles = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    means = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    law = mixture(torch.ones(5).double(), means, 0.09 * torch.eye(2).double().expand(5, 2, 2))
    draws = Draws.of_range(seed, 0, 0, count)
    u = law.sample(draws.normal("ring", (2,), torch.float64), draws.uniform("component"))
    return u.float(), law.log_density(u, torch.zeros(count, dtype=torch.float64)).float()


def target(count: int, seed: int, bend: float) -> tuple[Tensor, Tensor]:
    """(count, 2) of x = A (u bent) + b and log p(x); the bend is a shear, which keeps volumes."""
    u, density = ring(count, seed)
    matrix = torch.tensor([[1.4, 0.5], [0.3, 0.7]])
    curved = torch.stack([u[:, 0], u[:, 1] + bend * (u[:, 0] ** 2 - 2)], dim=1)
    x = curved @ matrix.mT + torch.tensor([0.5, -1.0])
    return x, density - torch.linalg.slogdet(matrix)[1]


def spline_flow(samples: Tensor, steps: int) -> CouplingFlow:
    """Fitted with early stopping."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = CouplingFlow((2,), "spline", transforms=4, hidden=(64,))
    adam = Adam(lr=2e-3, betas=(0.9, 0.99), schedule="cosine", clip=5.0)
    fit(flow, samples, steps=steps, optimizer=adam, stopping=EarlyStopping(every=10, patience=10))
    return flow


@torch.no_grad()
def distances(flow: CouplingFlow | Affine, bend: float) -> tuple[Estimate, Estimate, float]:
    """KL in nats, total variation and W2 from a target's law."""
    x, density = target(2000, 3, bend)
    return *density_distances(density, flow.log_prob(x)), wasserstein2(x, flow.sample(range(2000)))


def unconditional(scale: float) -> Found:
    """000.7."""
    repeats, rows, near = max(200, round(500 * scale)), [], []
    facts: dict[str, Any] = {}
    for count in (50, 100, 400):
        found = mixtures(4000, count, repeats)
        row = {"x": "two Gaussians", "n_t": str(count)}
        for arm, each in found.items():
            row |= {f"{arm}: counted": f"{each['law']:.4f}", arm: str(each["simulated"])}
            row |= {f"{arm}: TV": "", f"{arm}: W2": ""}
            if count == 400:
                near.append(abs(each["simulated"].value / each["law"] - 1) < 0.2)
        facts[f"mixture {count}"] = {
            arm: {"law": each["law"], "simulated": each["simulated"].value}
            for arm, each in found.items()
        }
        rows.append(row | {"W2 of two samples": ""})
    samples, steps = max(1000, round(4000 * scale)), max(150, round(500 * scale))
    source = spline_flow(ring(samples, 1)[0], steps)
    for bend in (0.0, 0.15):
        floor = wasserstein2(target(2000, 3, bend)[0], target(2000, 4, bend)[0])
        for count in (20, 100, 1000):
            x = target(count, 2, bend)[0]
            name = "ring, bent" if bend else "ring, affine map"
            fitted = {"scratch": spline_flow(x, steps), "transfer": Affine(source).fit(x, 300)}
            row, values = {"x": name, "n_t": str(count)}, {}
            for arm, flow in fitted.items():
                kl, variation, transport = distances(flow, bend)
                row |= {f"{arm}: counted": "", arm: str(kl)}
                row |= {f"{arm}: TV": str(variation), f"{arm}: W2": f"{transport:.3f}"}
                values |= {arm: kl.value, f"{arm} TV": variation.value, f"{arm} W2": transport}
            rows.append(row | {"W2 of two samples": f"{floor:.3f}"})
            facts[f"{name} {count}"] = values
    few, many = facts["ring, affine map 20"], facts["ring, bent 1000"]
    helps = few["transfer"] < few["scratch"]
    return rows, facts | {
        "holds": all(near) and helps and many["transfer"] > many["scratch"],
    }


EXPERIMENTS = {
    "000.7": Experiment(
        "unconditional transfer costs half a nat per parameter of the adapter and sample",
        unconditional,
        1.5,
    ),
}
