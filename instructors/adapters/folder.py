"""A denoiser as a folder, `unet/` and `scheduler/` as diffusers lays them out.

Where diffusers has no scheduler for what stands around a network, the scheduler's configuration
names our adapter.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instil.base.errors import InstilError
from instil.base.runs.report import write_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.continuous import ContinuousVE, ContinuousVP
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.flow import Flow
from instructors.adapters.karras import Karras
from instructors.adapters.schedules import FLOW, prediction_of, schedule_of

# Schedules that diffusers does not have.
OWN: dict[str, type[Adapter]] = {
    kind.__name__: kind for kind in (ContinuousVP, ContinuousVE, DiscreteVP)
}
ADAPTERS: dict[str, type[Adapter]] = {kind.__name__: kind for kind in (Flow, Karras, ScoreVE)} | OWN


def save(folder: Path, denoiser: Adapter, weights: bool = True) -> None:
    """Write what `instructors.load.load` makes the same denoiser of.

    Args:
        folder: Exists.
        denoiser: Its network has diffusers' `save_pretrained`.
        weights: If not, only configurations are written.

    Raises:
        InstilError: It has not, or the denoiser has no layout.
    """
    network: Any = denoiser.network
    if not hasattr(network, "save_pretrained"):
        raise InstilError(
            f"no layout for a {type(denoiser).__name__} with a {type(network).__name__} network"
        )
    scheduler = denoiser.config()
    if denoiser.sampled:
        scheduler["sampled"] = list(denoiser.sampled)
    (network.save_pretrained if weights else network.save_config)(folder / "unet")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)


def adapter_of(scheduler: Mapping[str, Any]) -> type[Adapter]:
    """The adapter for the configuration of a scheduler.

    Raises:
        InstilError: There is none.
    """
    if scheduler.get("_class_name") in OWN:
        return OWN[scheduler["_class_name"]]
    schedule, prediction = schedule_of(scheduler), prediction_of(scheduler)
    if prediction == FLOW:
        return Flow
    continuous = (
        "timestep_type" in schedule.process and scheduler.get("timestep_type") == "continuous"
    )
    return Karras if continuous and prediction == "v_prediction" else ADAPTERS[schedule.adapter]


def adapt(
    adapter: type[Adapter],
    scheduler: Mapping[str, Any],
    network: Any,
    shape: tuple[int, ...],
    classes: int,
) -> Adapter:
    """A network as a denoiser.

    Args:
        adapter: As `adapter_of` says.
        scheduler: The configuration, diffusers' or one that `save` has written.
        network: With a configuration of its own.
        shape: One sample without the batch axis.
        classes: Number of class labels; 0 for none.

    Raises:
        InstilError: The schedule is not supported, or a value is missing or makes none.
    """
    try:
        denoiser = adapter.from_config(scheduler, network, shape, classes)
        if scheduler.get("sampled"):
            low, high = map(float, scheduler["sampled"])
            if not 0 < low < high < math.inf:
                raise InstilError(
                    f"its scheduler's sampled {low} to {high}: expected rising levels"
                )
            denoiser.sampled = low, high
        return denoiser
    except KeyError as error:
        raise InstilError(f"its scheduler names no {error}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InstilError):
            raise
        reason = str(error).partition("\n")[0]
        raise InstilError(f"its scheduler holds values of another kind ({reason})") from error
    except (NotImplementedError, ImportError) as error:  # by diffusers
        raise InstilError(f"schedule: {error}") from error
