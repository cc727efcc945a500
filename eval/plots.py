"""Curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def run_curves(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any], path: Path) -> None:
    """Losses, and distances where they were measured, over the updates of a run.

    Args:
        records: Of `metrics.jsonl`: losses, or under `fd` a mapping of averages to distances.
        report: The final report; its instructor's quick distance, if known, is drawn as a line.
        path: The PNG to write.
    """
    losses = [record for record in records if "fd" not in record]
    distances = [record for record in records if "fd" in record]
    panels = 2 + bool(distances)
    figure = Figure(figsize=(4.4 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    for axis, key, title in zip(
        axes,
        ("student", "fake"),
        ("loss of the student", "denoising loss of the fake"),
        strict=False,
    ):
        axis.plot([r["step"] for r in losses], [r[key] for r in losses])
        axis.set(xlabel="student updates", title=title)
    if distances:
        for name in distances[-1]["fd"]:
            steps, values = [r["step"] for r in distances], [r["fd"][name] for r in distances]
            axes[2].plot(steps, values, marker=".", label=f"average over {name} images")
        if "quick" in report["instructor"]:
            axes[2].axhline(report["instructor"]["quick"], color="grey", label="instructor")
        axes[2].set(xlabel="student updates", title=report["fd_name"], yscale="log")
        axes[2].legend()
    figure.savefig(path, dpi=110)
