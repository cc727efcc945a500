"""Does decaying the learning rate help a student that is read through its average?

    python -m benchmarks.schedule [--steps N] [--seeds K] [--json PATH]

{dmd, sid} x {constant rate, cosine to zero} x averages of several half-lives, on the embedded
digits. Every average of every run is measured by the recipe's full protocol at the end of training.
"""

import argparse
import statistics
import sys
from typing import Any

import torch
from scipy import stats

from benchmarks.harness import Rows, command, spread
from benchmarks.objectives import jobs
from benchmarks.runs import AVERAGES, OPTIONS, Run, distilled
from eval.quality.evaluator import Evaluator
from eval.quality.images import student_sampler
from instil.base.runs.monitor import note

SCHEDULES = ("constant", "cosine")
OBJECTIVES = ("dmd", "sid")


def distances(run: Run) -> dict[int, float]:
    """The Fréchet distance of every average in a run's last checkpoint, by half-life."""
    evaluator = Evaluator(run.recipe.evaluation, run.instructor, torch.device("cpu"))
    samplers = {half: student_sampler(run.student(half)) for half in AVERAGES}
    return {half: evaluator.score(sampler)["fd"]["mean"] for half, sampler in samplers.items()}


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The table of both objectives, both schedules and all averages."""
    torch.set_num_threads(1)
    cells = [(objective, schedule) for objective in OBJECTIVES for schedule in SCHEDULES]
    wanted = []
    for objective, schedule in cells:
        keys = ("optimizer.schedule", "fake.optimizer.schedule") if schedule != "constant" else ()
        changes = [f"{key}={schedule}" for key in keys]
        wanted += jobs(objective, arguments.steps, arguments.seeds, *changes)
    runs = distilled(wanted, arguments.runs, arguments.jobs)
    found: dict[str, dict[str, list[list[float]]]] = {name: {} for name in OBJECTIVES}
    for number, (objective, schedule) in enumerate(cells):
        note(f"measuring {objective}, {schedule}")
        mine = runs[number * arguments.seeds : (number + 1) * arguments.seeds]
        each = [distances(one) for one in mine]
        found[objective][schedule] = [[one[half] for one in each] for half in AVERAGES]
    rows, facts = [], []
    for objective in OBJECTIVES:
        for number, half in enumerate(AVERAGES):
            constant, cosine = (found[objective][schedule][number] for schedule in SCHEDULES)
            gap = [b - a for a, b in zip(constant, cosine, strict=True)]
            error = statistics.stdev(gap) / len(gap) ** 0.5 if len(gap) > 1 else float("nan")
            wide = float(stats.t.ppf(0.975, len(gap) - 1)) * error if len(gap) > 1 else float("nan")
            facts.append(
                {
                    "objective": objective,
                    "halflife_images": half,
                    "constant": constant,
                    "cosine": cosine,
                    "gap": {"mean": statistics.mean(gap), "half_width_95": wide},
                }
            )
            rows.append(
                {
                    "objective": objective,
                    "half-life": f"{half:,} images" if half else "none: raw weights",
                    "constant": spread(constant),
                    "cosine to zero": spread(cosine),
                    "cosine - constant, 95 %": f"{statistics.mean(gap):+.3f} ± {wide:.3f}",
                }
            )
    return rows, {"table": facts, "steps": arguments.steps}


if __name__ == "__main__":
    options = OPTIONS | {
        "--steps": {"type": int, "default": 500, "help": "student updates [%(default)s]"},
    }
    sys.exit(command(run, "FD on the embedded digits, mean and deviation over seeds", options))
