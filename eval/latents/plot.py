"""The picture of `eval latents`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from instil.base.runs.pictures import save_figure


def latent_prices(facts: Mapping[str, Any], path: Path) -> None:
    """What every latent space costs over the noise level, and its size over the tolerance.

    Args:
        facts: Of `eval.latents.ask`.
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
    save_figure(figure, path)
