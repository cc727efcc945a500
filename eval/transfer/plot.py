"""The picture of `eval transfer`."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from eval.curves import contributions
from eval.transfer.compare import FROZEN, SCRATCH, paired
from eval.transfer.cross_validate import CrossValidation
from instil.base.runs.pictures import save_figure


def transfer_curves(result: CrossValidation, path: Path) -> None:
    """Where an arm gains over scratch, and where the source's embedding falls short.

    Args:
        result: The cross-validated arms.
        path: The PNG to write.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axis, compared = figure.subplots(), result.comparison
    others = [arm for arm in compared.nats if arm != SCRATCH]
    pairs = [(arm, SCRATCH) for arm in others] if SCRATCH in compared.nats else []
    if compared.gap is not None and compared.seeing != SCRATCH:
        pairs.append((FROZEN, str(compared.seeing)))
    for first, second in pairs:
        one, two = (result.losses[arm].model for arm in (first, second))
        levels = one.sigmas.tolist()[:-1]
        above = [
            paired(contributions(one, low=low), contributions(two, low=low), compared.parts)
            for low in levels
        ]
        nats, errors = torch.tensor([(each.value, each.stderr) for each in above]).unbind(1)
        gap = " (embedding gap)" if (first, second) == (FROZEN, compared.seeing) else ""
        axis.plot(levels, nats, label=f"{first} less {second}{gap}", linestyle="--" if gap else "-")
        axis.fill_between(levels, nats - 2 * errors, nats + 2 * errors, alpha=0.2)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xscale="log", xlabel="noise level sigma", ylabel="difference in nats above sigma")
    if pairs:
        axis.legend()
    save_figure(figure, path)
