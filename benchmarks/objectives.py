"""Every divergence under one budget, on the embedded digits.

    python -m benchmarks.objectives [--steps N] [--seeds K] [--json PATH]

All else is the shipped recipe: levels, start, rates, averages. `experiments.ring` is likewise, with
an exact instructor.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Rows, command, deviation
from benchmarks.runs import OPTIONS, Run, distilled

DIVERGENCES: dict[str, dict[str, Any]] = {
    "ikl": {"kind": "ikl"},
    "dmd": {"kind": "dmd"},
    "sid": {"kind": "sid", "alpha": 1.2},
    "sid-1.0": {"kind": "sid", "alpha": 1.0},
    "sim": {"kind": "sim"},
}


def jobs(divergence: str, steps: int, seeds: int, *changes: str) -> list[tuple[str, ...]]:
    """Recipes of one row, one per training seed."""
    words = ", ".join(f"{key}: {value}" for key, value in DIVERGENCES[divergence].items())
    fixed = (f"divergence={{{words}}}", f"train.steps={steps}", "evaluation.every=100", *changes)
    return [("digits", *fixed, f"train.seed={seed}") for seed in range(seeds)]


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean and standard deviation over training seeds of what the reports say."""
    found: dict[str, Any] = {}
    for key in ("fd", "precision", "recall", "class_tv"):
        values = [run.report["student"][key]["mean"] for run in runs]
        found[key] = {"mean": statistics.mean(values), "std": deviation(values), "each": values}
    found["ratio"] = statistics.mean(run.report["ratio"] for run in runs)
    found["seconds"] = statistics.mean(run.report["seconds"] for run in runs)
    found["forwards_per_update"] = runs[0].report["forwards_per_update"]
    return found


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The table."""
    wanted = {name: jobs(name, arguments.steps, arguments.seeds) for name in DIVERGENCES}
    flat = distilled([j for each in wanted.values() for j in each], arguments.runs, arguments.jobs)
    digits = {
        name: summary(flat[n * arguments.seeds : (n + 1) * arguments.seeds])
        for n, name in enumerate(wanted)
    }
    rows = [
        {
            "objective": name,
            "FD": f"{f['fd']['mean']:.3f} ± {f['fd']['std']:.3f}",
            "student / instructor": f"{f['ratio']:.2f}",
            "precision": f"{f['precision']['mean']:.3f}",
            "recall": f"{f['recall']['mean']:.3f}",
            "forwards": str(f["forwards_per_update"]),
            "seconds": f"{f['seconds']:.0f}",
        }
        for name, f in digits.items()
    ]
    return rows, {"digits": digits, "protocol": flat[0].report["protocol"]}


if __name__ == "__main__":
    options = OPTIONS | {
        "--steps": {"type": int, "default": 500, "help": "student updates [%(default)s]"},
    }
    sys.exit(command(run, "Embedded digits", options))
