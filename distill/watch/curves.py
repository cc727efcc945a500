"""The curves of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instil.base.runs.pictures import save_figure


def run_curves(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any], path: Path) -> None:
    """Losses, distances where they were measured, and nats to the instructor over the updates.

    Args:
        records: Lines of `metrics.jsonl`: losses, or distances by average under `fd`, or gauges
            under `gauges`.
        report: The final report; its instructor's quick distance, if known, is drawn as a line.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure  # a second to import

    losses = [record for record in records if "student" in record]
    distances = [record for record in records if "fd" in record]
    gauges = [record for record in records if "gauges" in record]
    panels = 2 + bool(gauges) + bool(distances)
    figure = Figure(figsize=(4.4 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    titles = {"student": "loss of the student", "fake": "denoising loss of the fake"}
    for axis, (key, title) in zip(axes[:2], titles.items(), strict=True):
        axis.plot([r["step"] for r in losses], [r[key] for r in losses])
        axis.set(xlabel="student updates", title=title)
    if gauges:
        nats = [record["gauges"]["nats"] for record in gauges]
        values, errors = [each["value"] for each in nats], [2 * each["stderr"] for each in nats]
        axes[2].errorbar([r["step"] for r in gauges], values, errors, marker=".")
        axes[2].axhline(0, color="grey")
        axes[2].set(xlabel="student updates", title="student to instructor, nats at least")
    if distances:
        axis = axes[-1]
        for name in distances[-1]["fd"]:
            steps, values = [r["step"] for r in distances], [r["fd"][name] for r in distances]
            axis.plot(steps, values, marker=".", label=f"average over {name} images")
        if "quick" in report["instructor"]:
            axis.axhline(report["instructor"]["quick"], color="grey", label="instructor")
        axis.set(xlabel="student updates", title=report["fd_name"], yscale="log")
        axis.legend()
    save_figure(figure, path)
