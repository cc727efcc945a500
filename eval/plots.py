"""Curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eval.horizon import Horizon
from instil.files import replacing


def run_curves(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any], path: Path) -> None:
    """Losses, distances where they were measured, and nats to the instructor over the updates.

    Args:
        records: Of `metrics.jsonl`: losses, or under `fd` a mapping of averages to distances, or
            under `gauges` what the networks do at each noise level.
        report: The final report; its instructor's quick distance, if known, is drawn as a line.
        path: The PNG to write.
    """
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
    _save(figure, path)


def latent_prices(facts: Mapping[str, Any], path: Path) -> None:
    """What every latent space costs over the noise level, and its size over the tolerance.

    Args:
        facts: Of `eval.latent_report`.
        path: The PNG to write.
    """
    figure = Figure(figsize=(8.8, 3.4), layout="constrained")
    prices, sizes = figure.subplots(1, 2)
    sigmas, tolerance = facts["prices"]["sigmas"], facts["nats"]
    curves = dict(facts["prices"]["arms"])
    if "bound" in facts["prices"]:
        curves["bound on reuse"] = facts["prices"]["bound"]
    for name, curve in curves.items():
        prices.errorbar(sigmas, curve["nats"], [2 * e for e in curve["stderr"]], label=name)
    prices.axvline(facts["sigma"], color="grey", linewidth=0.8)
    prices.set(xscale="log", yscale="log", xlabel="noise level sigma", ylabel="nats an image")
    prices.set(title=f"price of {facts['dim']} dimensions, above sigma", ylim=(1e-3, None))
    shared = facts["shared_dimension"]
    for role in ("source", "target"):
        curve = shared[role]
        steps = range(1, len(curve["nats"]) + 1)
        sizes.errorbar(steps, curve["nats"], [2 * e for e in curve["stderr"]], label=role)
    if shared["dim"]:
        sizes.axvline(shared["dim"], color="grey", linewidth=0.8)
    sizes.set(yscale="log", xlabel="leading directions of the mixture", ylim=(1e-3, None))
    sizes.set(title=f"price at sigma {facts['sigma']:g}: both need {shared['dim']}")
    for axis in (prices, sizes):
        axis.axhline(tolerance, color="grey", linestyle=":", label=f"tolerance {tolerance:g}")
        axis.legend(loc="upper right")
    _save(figure, path)


def horizon_curve(found: Horizon, path: Path) -> None:
    """The certificate over the noise level where the diffusion starts.

    Args:
        found: The answer.
        path: The PNG to write.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axis = figure.subplots()
    sigmas, nats, stderr = found.sigmas, found.nats, found.stderr
    axis.plot(sigmas, nats)
    axis.fill_between(sigmas, nats - 2 * stderr, nats + 2 * stderr, alpha=0.2)
    marks = (("T_opt", found.best, "--"), ("T_eps", found.sufficient, "-"))
    for name, at, style in marks:
        label = f"{name} = {at.value:.3g}"
        axis.axvline(at.value, color="grey", linestyle=style, linewidth=1, label=label)
    axis.set(
        xscale="log",
        xlabel="sigma where the diffusion starts",
        ylabel="J less that of the reference alone, nats",
    )
    axis.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG, or what the path's suffix says."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:] or "png")
