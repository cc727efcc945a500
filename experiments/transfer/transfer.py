"""Transfer through a shared embedding (arXiv 2405.16837) with networks: 000.1 to 000.5."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.answer import Rows
from eval.curves import Estimate
from eval.transfer.compare import SCRATCH
from experiments.experiment import Experiment
from experiments.families import FAMILIES, Size, adapted, excess, taught
from experiments.tasks import ANGLES, Task, gap, source_head
from experiments.transfer.laws import Fit, cross_validate
from instructors.transfer import Arm

Found = tuple[Rows, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is spent and tried."""

    size: Size
    counts: tuple[int, ...]
    angles: tuple[float, ...]
    families: tuple[str, ...]


def plan(scale: float) -> Plan:
    """All at full scale; below it diffusions alone, with little more than is needed."""
    if scale == 1:
        return Plan(Size(8000, 1500, 600), (50, 200, 1000), ANGLES, tuple(FAMILIES))
    size = Size(4000, max(400, round(1500 * scale)), 200)
    return Plan(size, (50, 1000), (ANGLES[0], ANGLES[-1]), ("diffusion",))


def transfer_beats_scratch(family: str, scale: float) -> Found:
    """000.1 and 000.2."""
    this = plan(scale)
    rows, facts = [], {}
    for count in this.counts:
        arms: dict[str, Arm] = {"scratch": "scratch", "transfer": "frozen", "finetune": "finetune"}
        found = {name: excess(family, arm, 0.0, count, this.size) for name, arm in arms.items()}
        rows.append({"n_t": str(count)} | {name: str(each) for name, each in found.items()})
        facts[str(count)] = {name: each.value for name, each in found.items()}
    rows.append({"n_t": "source", "transfer": str(_source_excess(family, this.size))})
    return rows, facts | {
        "holds": all(each["transfer"] < 0.6 * each["scratch"] for each in facts.values())
    }


def _source_excess(family: str, size: Size) -> Estimate:
    return FAMILIES[family].excess(taught(family, 0.0, size), Task(0.0, source_head))


def rotated_embedding(scale: float) -> Found:
    """000.3."""
    this = plan(scale)
    size, counts, angles = this.size, this.counts, this.angles
    rows, facts, holds = [], {}, []
    for family in this.families:
        for count in counts:
            fresh = excess(family, "scratch", 0.0, count, size)
            moved = [excess(family, "frozen", angle, count, size) for angle in (0.0, *angles)]
            rows.append(
                {"family": family, "n_t": str(count), "scratch": str(fresh)}
                | {
                    f"angle {angle:.3g}": f"{each}{'' if each.value < fresh.value else ' *'}"
                    for angle, each in zip((0.0, *angles), moved, strict=True)
                }
            )
            values = [each.value for each in moved]
            facts[f"{family} {count}"] = {"scratch": fresh.value, "frozen": values}
            if count == counts[-1]:  # graded
                holds += [values == sorted(values), values[0] < fresh.value < values[-1]]
    few = facts[f"diffusion {counts[0]}"]
    return rows, facts | {"holds": all(holds) and few["frozen"][1] < few["scratch"]}


def fits(family: str, arms: dict[str, tuple[Arm, float]], count: int, size: Size) -> dict[str, Fit]:
    """Arms for `cross_validate` on `count` samples of the target: how, and from which angle."""
    x, known = Task().sample(count, seed=2)
    kind = FAMILIES[family]

    def of(arm: Arm, angle: float) -> Fit:
        def fitted(rows: Tensor, held_out: Tensor) -> Tensor:
            source = taught(family, angle, size)
            model = adapted(family, arm, source, x[rows], known.rows(rows), size.steps)
            return kind.nats(model, x[held_out], known.rows(held_out))

        return fitted

    return {name: of(arm, angle) for name, (arm, angle) in arms.items()}


def cross_validated_choice(scale: float) -> Found:
    """000.4."""
    this = plan(scale)
    size = this.size
    counts, folds = (this.counts, None) if scale == 1 else ((200,), 4)
    tried: dict[str, tuple[Arm, float]] = {SCRATCH: ("scratch", 0.0)}
    for angle in (0.0, *this.angles):
        tried[f"{angle:.3g}"] = ("frozen", angle)
    rows, facts = [], {}
    for count in counts:
        found = cross_validate(fits("diffusion", tried, count, size), count, folds)
        fresh = excess("diffusion", "scratch", 0.0, count, size).value
        for name, (arm, angle) in tried.items():
            if name == SCRATCH:
                continue
            less = found.less(name, SCRATCH)
            truth = excess("diffusion", arm, angle, count, size).value - fresh
            said = "undecided" if not less.clear else "harms" if less.value > 0 else "helps"
            rows.append(
                {
                    "n_t": str(count),
                    "angle": name,
                    "frozen - scratch, cross-validated": str(less),
                    "says": said,
                    "by the law": f"{truth:+.3f}",
                }
            )
            facts[f"{count} {name}"] = {"found": less.value, "said": said, "truth": truth}
    right = [
        (each["truth"] > 0) == (each["said"] == "harms")
        for each in facts.values()
        if each["said"] != "undecided"
    ]
    return rows, facts | {
        "decided": len(right),
        "right": sum(right),
        "holds": all(right) and len(right) > len(facts) / 2,
    }


def gap_predicts(scale: float) -> Found:
    """000.5."""
    this = plan(scale)
    size, counts, angles = this.size, this.counts, this.angles
    gaps = {angle: gap(angle, max(500, round(2000 * scale))) for angle in angles}
    rows, facts, signs = [], {}, []
    large: list[tuple[float, float]] = []
    for family in this.families:
        for count in counts:
            fresh = excess(family, "scratch", 0.0, count, size).value
            aligned = excess(family, "frozen", 0.0, count, size).value
            for angle, known in gaps.items():
                turned = excess(family, "frozen", angle, count, size).value
                right = (known.value < fresh - aligned) == (turned < fresh)
                signs.append(right)
                if count == counts[-1]:
                    large.append((known.value, turned - aligned))
                rows.append(
                    {
                        "family": family,
                        "n_t": str(count),
                        "angle": f"{angle:.3g}",
                        "gap": str(known),
                        "excess over aligned": f"{turned - aligned:.3f}",
                        "scratch over aligned": f"{fresh - aligned:.3f}",
                        "transfer": "helps" if turned < fresh else "harms",
                        "predicted": "right" if right else "wrong",
                    }
                )
                facts[f"{family} {count} {angle:.3g}"] = {
                    "gap": known.value,
                    "measured": turned - aligned,
                    "scratch": fresh - aligned,
                    "right": right,
                }
    slope = sum(g * m for g, m in large) / sum(g * g for g, _ in large)
    worst = max(abs(m - g) for g, m in large)
    return rows, facts | {
        "signs": sum(signs),
        "cells": len(signs),
        "slope": slope,
        "worst": worst,
        "holds": sum(signs) >= math.ceil(15 / 18 * len(signs)) and abs(slope - 1) < 0.2,
    }


EXPERIMENTS = {
    "000.1": Experiment(
        "diffusion: transfer is far better than scratch where n_s >> n_t",
        lambda scale: transfer_beats_scratch("diffusion", scale),
        1.0,
    ),
    "000.2": Experiment(
        "coupling flow: likewise", lambda scale: transfer_beats_scratch("flow", scale), 1.5
    ),
    "000.3": Experiment(
        "an embedding rotated away harms by degrees, and sooner with more samples",
        rotated_embedding,
        4.0,
    ),
    "000.4": Experiment(
        "cross-validation picks the better arm, or says that it does not know",
        cross_validated_choice,
        4.0,
    ),
    "000.5": Experiment(
        "the embedding gap predicts the sign and size of transfer", gap_predicts, 4.0
    ),
}
