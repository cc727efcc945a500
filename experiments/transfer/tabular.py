"""Transfer on real tables: 000.12, each of scikit-learn's sets split into two related tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from eval.answer import Rows
from eval.curves import Estimate, contributions, denoising_loss_curve, noise_levels
from eval.transfer.compare import SCRATCH
from experiments.experiment import Experiment
from experiments.families import FAMILIES, adapted
from experiments.transfer.laws import Fit, cross_validate
from instil.base.draws import Draws
from instructors.denoiser import Condition
from instructors.transfer import Arm

Found = tuple[Rows, dict[str, Any]]
TRIED: tuple[Arm, ...] = ("scratch", "frozen", "finetune")
FEW = 40  # rows of the target
LEVELS = noise_levels(0.1, 20)  # below a tenth of a standard deviation these tables are rounded


@dataclass(frozen=True)
class Table:
    """x given z, and which rows are the source's; the others are the target's.

    Attributes:
        x: (N, d).
        z: (N, p).
        source: (N,) bool.
    """

    x: np.ndarray
    z: np.ndarray
    source: np.ndarray

    def tasks(self) -> tuple[Tensor, Condition, Tensor, Condition]:
        """Source and target, in random order, in units of the source's mean and deviation."""
        parts = []
        for values in (self.x, self.z):
            seen = values[self.source]
            scaled = (values - seen.mean(0)) / seen.std(0).clip(1e-6)
            parts.append(torch.from_numpy(scaled).float())
        x, z = parts
        order = Draws.of_range(0, 0, 0, len(x)).uniform("row").argsort()
        mask = torch.from_numpy(self.source)[order]
        first, second = order[mask], order[~mask]
        return x[first], Condition(context=z[first]), x[second], Condition(context=z[second])


def diabetes() -> Table:
    """Progression and body mass given the eight other findings; from one sex to the other."""
    found: Any = datasets.load_diabetes(scaled=False)
    x = np.column_stack([found.target, found.data[:, 2]])
    return Table(x, np.delete(found.data, [1, 2], axis=1), found.data[:, 1] == 1)


def wine() -> Table:
    """Alcohol and colour given the eleven other findings; from two cultivars to the third."""
    found: Any = datasets.load_wine()
    return Table(found.data[:, [0, 9]], np.delete(found.data, [0, 9], axis=1), found.target < 2)


def breast_cancer() -> Table:
    """Worst radius, texture and concavity given the ten means; from benign to malignant."""
    found: Any = datasets.load_breast_cancer()
    return Table(found.data[:, [20, 21, 26]], found.data[:, :10], found.target == 1)


def iris() -> Table:
    """Petal given sepal; from setosa and versicolor to virginica."""
    found: Any = datasets.load_iris()
    return Table(found.data[:, 2:], found.data[:, :2], found.target < 2)


def linnerud() -> Table:
    """Weight, waist and pulse given three exercises; from ten men to ten others: one task twice."""
    found: Any = datasets.load_linnerud()
    return Table(found.target, found.data, np.arange(len(found.data)) < 10)


def digits() -> Table:
    """Four principal coordinates of lower halves given twelve of upper ones; 0-4 to 5-9."""
    found: Any = datasets.load_digits()
    source = found.target < 5
    halves = []
    for part, size in ((found.data[:, 32:], 4), (found.data[:, :32], 12)):
        apart = part - part[source].mean(0)
        axes = np.linalg.svd(apart[source], full_matrices=False)[2][:size]
        halves.append(apart @ axes.T)
    return Table(halves[0], halves[1], source)


TABLES: dict[str, Callable[[], Table]] = {
    "diabetes": diabetes,
    "wine": wine,
    "breast cancer": breast_cancer,
    "iris": iris,
    "linnerud": linnerud,
    "digits": digits,
}


def nats(model: Any, x: Tensor, known: Condition) -> Tensor:
    """(N,) integral of the denoising loss from sigma 0.1."""
    return contributions(denoising_loss_curve(model, x, LEVELS, condition=known, noise_draws=8))


def on_tables(scale: float) -> Found:
    """000.12."""
    steps = max(150, round(400 * scale))
    rows, facts = [], {}
    for name in TABLES if scale == 1 else ("diabetes", "breast cancer"):
        taught_x, taught_z, x, z = TABLES[name]().tasks()
        kind = FAMILIES["diffusion"]
        blank = kind.blank(x.shape[1], z["context"].shape[1], 0)
        source = kind.fit(blank, taught_x, taught_z, 2 * steps, 0, None)
        few = min(FEW, len(x))

        def arm_of(arm: Arm, source: Any = source, x: Tensor = x, z: Condition = z) -> Fit:
            def fitted(train: Tensor, held_out: Tensor) -> Tensor:
                model = adapted("diffusion", arm, source, x[train], z.rows(train), steps)
                return nats(model, x[held_out], z.rows(held_out))

            return fitted

        arms: dict[str, Fit] = {arm: arm_of(arm) for arm in TRIED}
        found = cross_validate(arms, few, 5 if scale == 1 else 2)
        rest = torch.arange(few, len(x))
        truth: dict[str, Tensor] = {}
        if len(rest) >= FEW:
            truth = {arm: fit(torch.arange(few), rest) for arm, fit in arms.items()}
        for arm in TRIED[1:]:
            less = found.less(arm, SCRATCH)
            says = "undecided" if not less.clear else "harms" if less.value > 0 else "helps"
            other = Estimate.of(truth[arm] - truth[SCRATCH]) if truth else None
            rows.append(
                {
                    "set": name,
                    "n_s": str(len(taught_x)),
                    "n_t": str(few),
                    "arm": arm,
                    "arm - scratch, cross-validated": str(less),
                    "says": says,
                    "on other rows": str(other or f"{len(rest)} left"),
                }
            )
            facts[f"{name}, {arm}"] = {
                "found": less.value,
                "says": says,
                "truth": None if other is None else other.value,
            }
    decided = [f for f in facts.values() if f["says"] != "undecided" and f["truth"] is not None]
    right = [(each["truth"] > 0) == (each["says"] == "harms") for each in decided]
    return rows, facts | {
        "decided": len(right),
        "right": sum(right),
        "holds": bool(right) and all(right),
    }


EXPERIMENTS = {
    "000.12": Experiment(
        "real tables: what cross-validation decides holds on the rows that were kept back",
        on_tables,
        3.0,
    ),
}
