"""Is the student as good as its instructor? The ratio of their distances and its 95 % interval.

    python -m benchmarks.long [--seeds K] [--json PATH]

The recipe `digits-long`, 50,000 images x 3 sampling seeds, once per training seed: half an hour of
one core each, without bf16, and up to an hour for the instructor's own images, drawn once.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from scipy import stats

from benchmarks.harness import Rows, command, deviation
from benchmarks.runs import OPTIONS, distilled


def interval(students: Sequence[float], instructor: float, error: float, draws: int) -> float:
    """Half the width of the 95 % interval of mean(students) / instructor.

    Args:
        students: Distances, one per training seed; two or more.
        instructor: Its mean distance over sampling seeds.
        error: Standard error of that mean.
        draws: Sampling seeds; their differences have one degree of freedom less.

    The ratio's variance to first order, with the degrees of freedom of Welch and Satterthwaite.
    """
    count, mean = len(students), statistics.mean(students)
    mine = statistics.variance(students) / count / instructor**2
    other = (mean * error / instructor**2) ** 2
    freedom = (mine + other) ** 2 / (mine**2 / (count - 1) + other**2 / (draws - 1))
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(mine + other)


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """A row per training seed, and one for all."""
    wanted = [("digits-long", f"train.seed={seed}") for seed in range(arguments.seeds)]
    runs = distilled(wanted, arguments.runs, arguments.jobs)
    reports = [run.report for run in runs]
    instructor, draws = reports[0]["instructor"]["fd"], reports[0]["instructor"]["fd"]["seeds"]
    students = [report["student"]["fd"] for report in reports]
    means = [each["mean"] for each in students]
    error = instructor["std"] / math.sqrt(draws)
    ratio = statistics.mean(means) / instructor["mean"]
    wide = interval(means, instructor["mean"], error, draws) if len(means) > 1 else math.nan
    rows = [
        {
            "training seed": str(seed),
            "FD": f"{each['mean']:.4f} ± {each['std']:.4f}",
            "student / instructor": f"{each['mean'] / instructor['mean']:.3f}",
        }
        for seed, each in enumerate(students)
    ]
    rows.append(
        {
            "training seed": "all",
            "FD": f"{statistics.mean(means):.4f} ± {deviation(means):.4f}",
            "student / instructor": f"{ratio:.3f} ± {wide:.3f}",
        }
    )
    rows.append(
        {
            "training seed": "instructor",
            "FD": f"{instructor['mean']:.4f} ± {instructor['std']:.4f}",
            "student / instructor": "1",
        }
    )
    facts = {
        "students": students,
        "instructor": instructor,
        "ratio": {"mean": ratio, "half_width_95": wide},
        "protocol": reports[0]["protocol"],
    }
    return rows, facts


if __name__ == "__main__":
    sys.exit(command(run, "The long digits recipe; ratio with its 95 % interval", OPTIONS))
