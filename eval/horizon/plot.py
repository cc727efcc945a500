"""The picture of `eval horizon`."""

from pathlib import Path

from matplotlib.figure import Figure

from eval.horizon.certificate import Horizon
from instil.base.runs.pictures import save_figure


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
    save_figure(figure, path)
