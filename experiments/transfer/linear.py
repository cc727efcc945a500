"""Transfer where every law is exact: linear and Gaussian, and mixtures by counting parameters."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from eval.answer import Rows
from eval.curves import Estimate
from experiments.experiment import Experiment
from experiments.tasks import gap
from experiments.transfer.laws import linear_gap, linear_risks, lost_signal, turning_point

Found = tuple[Rows, dict[str, Any]]
P, R, D, NOISE = 20, 2, 3, 0.25  # lengths of z, embedding and x, and the variance tau^2
HEAD = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1]], dtype=torch.float64)
# Heads that differ by a factor alone: (C_s'C_s)^-1 has the trace .3975, times C_t'C_t 1.17.
SOURCE_HEAD = math.sqrt(2 / 0.3975) * torch.eye(D, R, dtype=torch.float64)
TARGET_HEAD = math.sqrt(1.17 / 0.3975) * torch.eye(D, R, dtype=torch.float64)
TARGET = torch.eye(P, R, dtype=torch.float64)


def turned(angle: float) -> Tensor:
    """(P, R) a source's embedding, both principal angles the same."""
    return math.cos(angle) * TARGET + math.sin(angle) * TARGET.roll(R, 0)


def drawn(
    head: Tensor, basis: Tensor, count: int, repeats: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw z (repeats, count, P) and x (repeats, count, D) of one task."""
    z = torch.randn(repeats, count, P, generator=generator, dtype=torch.float64)
    noise = torch.randn(repeats, count, D, generator=generator, dtype=torch.float64)
    return z, z @ basis @ head.mT + math.sqrt(NOISE) * noise


def least_squares(z: Tensor, x: Tensor) -> Tensor:
    """(repeats, P, D) coefficients of x on z."""
    return torch.linalg.solve(z.mT @ z, z.mT @ x)


def embeddings(count: int, repeats: int, seed: int = 0) -> Tensor:
    """(repeats, P, R) orthonormal: reduced-rank regression on samples of the source."""
    generator = torch.Generator().manual_seed(seed)
    z, x = drawn(SOURCE_HEAD, TARGET, count, repeats, generator)
    full = least_squares(z, x)
    fitted = z @ full
    leading = torch.linalg.eigh(fitted.mT @ fitted).eigenvectors[..., -R:]
    return torch.linalg.qr(full @ leading).Q


def risks(
    head: Tensor, source: Tensor, count: int, repeats: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Out-of-sample risks of frozen and of scratch, and the KL of frozen with fitted covariance.

    Args:
        head: C of the target.
        source: The embedding, (P, R) or one per repeat.
        count: n_t; scratch is infinite where it has no least squares.
        repeats: Data sets.
        seed: Of them.

    Returns:
        (repeats, 2), and (repeats,) nats.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    z, x = drawn(head, TARGET, count, repeats, generator)
    truth = TARGET @ head.mT
    seen = least_squares(z @ source, x)
    wrong = source @ seen - truth  # (repeats, P, D)
    frozen = wrong.square().sum((1, 2)) + D * NOISE
    scratch = torch.full_like(frozen, math.inf)
    if count > P:
        scratch = (least_squares(z, x) - truth).square().sum((1, 2)) + D * NOISE
    rest = x - z @ source @ seen
    covariance = rest.mT @ rest / count
    eye = torch.eye(D, dtype=torch.float64)
    spread = torch.linalg.solve(covariance, NOISE * eye + wrong.mT @ wrong)
    nats = spread.diagonal(dim1=1, dim2=2).sum(1) - D + torch.logdet(covariance / NOISE)
    return torch.stack([frozen, scratch], dim=1), nats / 2


def lost_by_estimation(count: int) -> float:
    """tr(C E[S] C') of an embedding estimated on `count` samples of the source, to first order."""
    inverse = torch.linalg.inv(SOURCE_HEAD.mT @ SOURCE_HEAD)
    lost = (TARGET_HEAD @ inverse @ TARGET_HEAD.mT).trace().item()
    return (P - R) * NOISE * lost / (count - P - 1)


def excess(risk: float) -> float:
    """KL in nats of a risk, tau being known."""
    return (risk - D * NOISE) / (2 * NOISE)


def learning_curves(scale: float) -> Found:
    """000.6."""
    repeats = max(400, round(4000 * scale))
    angle = math.radians(25)
    lost = lost_signal(HEAD, TARGET, turned(angle))
    size, floor = lost.trace().item(), linear_gap(lost, NOISE)
    where = turning_point(P, R, D, NOISE, size)
    rows, right, near = [], [], []
    for count in (25, 30, 40, 60, 100, 200, 1000):
        law = linear_risks(P, R, D, NOISE, size, count)
        found, nats = risks(HEAD, turned(angle), count, max(50, min(repeats, 400_000 // count)))
        seen = [Estimate.of(each) for each in found.unbind(1)]
        near += [abs(s.value - m) < 4 * s.stderr for s, m in zip(seen, law, strict=True)]
        right.append((seen[0].value > seen[1].value) == (count > where))
        rows.append(
            {
                "n_t": str(count),
                "frozen: law": f"{law[0]:.4f}",
                "simulated": str(seen[0]),
                "scratch: law": f"{law[1]:.4f}",
                "simulated ": str(seen[1]),
                "KL of frozen": str(Estimate.of(nats)),
            }
        )
    rows.append({"n_t": f"n_neg {where:.1f}", "KL of frozen": f"gap {floor:.4f}"})
    last = Estimate.of(nats).value
    more, estimated = estimated_embeddings(repeats)
    holds = all(near) and all(right) and floor < last < floor + 0.02 and estimated["holds"]
    return [*rows, *more], {
        "n_neg": where,
        "gap": floor,
        "KL_at_1000": last,
        "estimated": estimated,
        "holds": holds,
    }


def estimated_embeddings(repeats: int) -> Found:
    """The curves in n_s: excess KL, tau known, and the sines of the embedding's angles."""
    rows, facts, near = [], {}, []
    for source, count in ((100, 30), (200, 30), (400, 30), (2000, 30), (2000, 100)):
        found = embeddings(source, min(repeats, 600_000 // source))
        sines = Estimate.of(R - (found.mT @ TARGET).square().sum((1, 2)))
        law = excess(linear_risks(P, R, D, NOISE, lost_by_estimation(source), count)[0])
        seen = Estimate.of(
            (risks(TARGET_HEAD, found, count, len(found))[0][:, 0] - D * NOISE) / 0.5
        )
        angles = 0.3975 * (P - R) * NOISE / (source - P - 1)
        near += [abs(seen.value / law - 1) < 0.05, abs(sines.value / angles - 1) < 0.1]
        rows.append(
            {
                "n_t": f"n_s {source}, n_t {count}",
                "frozen: law": f"{law:.4f}",
                "simulated": str(seen),
                "scratch: law": f"{excess(linear_risks(P, R, D, NOISE, 0.0, count)[1]):.3f}",
                "sin^2: law": f"{angles:.5f}",
                "sin^2": f"{sines.value:.5f} ± {sines.stderr:.0g}",
            }
        )
        facts[f"{source} {count}"] = {"law": law, "simulated": seen.value, "stderr": seen.stderr}
    return rows, facts | {"holds": all(near)}


def no_overlap(scale: float) -> Found:
    """000.10."""
    rows, gaps, curved = [], [], []
    degrees = (0, 15, 30, 45, 60, 75, 85, 90)
    signal = (HEAD @ HEAD.mT).trace().item()
    outer = max(500, round(2000 * scale))
    frozen = scratch = math.nan
    for degree in degrees:
        angle = math.radians(degree)
        lost = lost_signal(HEAD, TARGET, turned(angle))
        size = lost.trace().item()
        frozen, scratch = linear_risks(P, R, D, NOISE, size, 25)
        gaps.append(linear_gap(lost, NOISE))
        curved.append(gap(angle, outer))
        rows.append(
            {
                "angle": f"{degree}°",
                "gap, linear": f"{gaps[-1]:.4f}",
                "gap, tanh": str(curved[-1]),
                "n_neg": f"{turning_point(P, R, D, NOISE, size):.1f}",
                "frozen, n_t = 25": f"{frozen:.3f}",
                "scratch": f"{scratch:.3f}",
                "ignoring z": f"{D * NOISE + signal:.3f}",
            }
        )
    # what is left to gain near 90 degrees goes as the squared cosine of the angle
    order = math.log((gaps[-1] - gaps[5]) / (gaps[-1] - gaps[6])) / math.log(
        math.cos(math.radians(75)) / math.cos(math.radians(85))
    )
    rising = all(a.value < b.value + 0.02 for a, b in itertools.pairwise(curved))
    return rows, {
        "order": order,
        "gap": gaps,
        "gap_tanh": [each.value for each in curved],
        "holds": abs(order - 2) < 0.1
        and rising
        and frozen < scratch
        and frozen > D * NOISE + signal,
    }


EXPERIMENTS = {
    "000.6": Experiment(
        "linear case: curves in n_t cross at n_neg and end at the gap; those in n_s follow a law",
        learning_curves,
        0.3,
    ),
    "000.10": Experiment(
        "as the overlap goes to zero the gap flattens, and a useless embedding only regularises",
        no_overlap,
        0.2,
    ),
}
