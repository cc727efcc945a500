"""Curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def run_curves(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any], path: Path) -> None:
    """Losses, and distances where they were measured, over the updates of a run.

    Args:
        records: Of `metrics.jsonl`: losses, or under `fd` a mapping of averages to distances.
        report: The final report; its instructor's distance is drawn as a line.
        path: The PNG to write.
    """
    losses = [record for record in records if "fd" not in record]
    distances = [record for record in records if "fd" in record]
    figure = Figure(figsize=(5.5 * (1 + bool(distances)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + bool(distances), squeeze=False)[0]
    for key in sorted({key for record in losses for key in record} - {"step", "images_per_second"}):
        axes[0].plot([r["step"] for r in losses], [r[key] for r in losses], label=key)
    axes[0].set(xlabel="student updates", ylabel="loss", yscale="log")
    axes[0].legend()
    if distances:
        for name in distances[-1]["fd"]:
            steps, values = [r["step"] for r in distances], [r["fd"][name] for r in distances]
            axes[1].plot(steps, values, marker=".", label=f"average over {name} images")
        axes[1].axhline(report["instructor"]["fd"]["mean"], color="grey", label="instructor")
        axes[1].set(xlabel="student updates", ylabel=report["fd_name"], yscale="log")
        axes[1].legend()
    figure.savefig(path, dpi=120)
