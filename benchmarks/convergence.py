"""Distance against seconds: the shipped digits recipe and the paper's preset.

    python -m benchmarks.convergence [--steps N] [--seeds K] [--plot PATH] [--json PATH]

The preset is `digits-paper` with its learning rate chosen among three values by the final distance
of one training seed that is not reported. Distances come from the runs, update by update; seconds
per update are timed afterwards, one method against the other in turn, so that a busy machine
favours neither.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.harness import Rows, command, paired
from benchmarks.runs import OPTIONS, Run, distilled
from distill.__main__ import RECIPES
from distill.build import build
from distill.recipe import Recipe
from distill.trainer import train
from instil.base.config import load_recipe
from instil.base.runs.monitor import note
from instructors.load import load

RATES = (1.0e-4, 3.0e-4, 1.0e-3)
TUNING_SEED = 100
AVERAGE = "10000"


def preset(rate: float, steps: int, seed: int) -> tuple[str, ...]:
    """The paper's preset at one learning rate."""
    rates = (f"optimizer.lr={rate}", f"fake.optimizer.lr={rate}")
    return ("digits-paper", *rates, *_common(steps, seed))


def default(steps: int, seed: int) -> tuple[str, ...]:
    """The shipped recipe."""
    return ("digits", *_common(steps, seed))


def curve(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Updates (N,) and distances (seeds, N)."""
    steps = runs[0].curve(AVERAGE)[0]
    return steps, np.stack([run.curve(AVERAGE)[1] for run in runs])


def reached(steps: np.ndarray, distances: np.ndarray, goal: float) -> float:
    """The update at which a curve first lies at or below `goal`, interpolated; nan if never."""
    below = np.flatnonzero(distances <= goal)
    if len(below) == 0:
        return float("nan")
    last = below[0]
    if last == 0:
        return float(steps[0])
    before, after = distances[last - 1], distances[last]
    return float(np.interp(goal, [after, before], [steps[last], steps[last - 1]]))


def seconds_per_update(rate: float) -> tuple[float, float]:
    """Of the shipped recipe and of the preset."""
    torch.set_num_threads(1)
    updates = []
    for job in (default(10**9, 0), preset(rate, 10**9, 0)):
        recipe = load_recipe(Recipe, job[0], list(job[1:]), RECIPES)
        instructor = load(recipe.instructor)
        state = build(recipe, instructor)
        reports = train(state, instructor.denoiser, recipe, Accelerator(cpu=True))
        updates.append(lambda reports=reports: next(reports))
    ours, theirs, _ = paired(*updates, rounds=7, calls=5)
    return ours, theirs


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Tune the preset, run both, and find when the default is as good as the preset ends."""
    steps, seeds = arguments.steps, range(arguments.seeds)
    tuning = distilled(
        [preset(rate, steps, TUNING_SEED) for rate in RATES], arguments.runs, arguments.jobs
    )
    finals = {
        rate: float(each.curve(AVERAGE)[1][-1]) for rate, each in zip(RATES, tuning, strict=True)
    }
    best = min(finals, key=lambda rate: finals[rate])
    note(f"the preset's learning rate: {best:g} ({finals})")
    wanted = [default(steps, seed) for seed in seeds] + [preset(best, steps, s) for s in seeds]
    runs = distilled(wanted, arguments.runs, arguments.jobs)
    mine, other = curve(runs[: len(seeds)]), curve(runs[len(seeds) :])
    ours, theirs = seconds_per_update(best)
    goal = float(other[1][:, -1].mean())
    times = [reached(mine[0], each, goal) * ours for each in mine[1]]
    whole = float(other[0][-1]) * theirs
    if arguments.plot:
        _plot(mine, other, ours, theirs, arguments.plot)
    facts = {
        "preset_rate": best,
        "tuning": {str(rate): value for rate, value in finals.items()},
        "goal": goal,
        "seconds_per_update": {"default": ours, "preset": theirs},
        "final": {"default": mine[1][:, -1].tolist(), "preset": other[1][:, -1].tolist()},
        "seconds_to_goal": {"default": times, "preset": whole},
        "ratio": statistics.mean(times) / whole,
        "steps": mine[0].tolist(),
        "curves": {"default": mine[1].tolist(), "preset": other[1].tolist()},
    }
    rows = [
        {
            "method": name,
            "final FD": f"{np.mean(final):.3f} ({np.min(final):.3f} to {np.max(final):.3f})",
            "s / update": f"{seconds:.3f}",
            f"seconds to {goal:.3f}": f"{until:.0f}",
        }
        for name, final, seconds, until in (
            ("shipped recipe", mine[1][:, -1], ours, statistics.mean(times)),
            (f"paper's preset, rate {best:g}", other[1][:, -1], theirs, whole),
        )
    ]
    return rows, facts


def _common(steps: int, seed: int) -> tuple[str, ...]:
    return (f"train.steps={steps}", "evaluation.every=100", f"train.seed={seed}")


def _plot(
    mine: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    ours: float,
    theirs: float,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for (steps, distances), seconds, name, color in (
        (mine, ours, "shipped recipe", "C0"),
        (other, theirs, "paper's preset", "C1"),
    ):
        for number, each in enumerate(distances):
            axis.plot(steps * seconds, each, color=color, label=name if number == 0 else None)
    axis.set(xlabel="seconds, one core", ylabel="FD, 2,000 images", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    options = OPTIONS | {
        "--steps": {"type": int, "default": 500, "help": "student updates [%(default)s]"},
        "--plot": {"type": Path, "metavar": "PNG"},
    }
    sys.exit(command(run, "Digits, one core", options))
