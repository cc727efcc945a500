"""A denoiser as a folder, `unet/` and `scheduler/` as diffusers lays them out.

Where diffusers has no scheduler for what stands around a network, the scheduler's configuration
names our adapter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from instil.base.errors import InstilError
from instil.base.runs.report import write_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.continuous import ContinuousVE, ContinuousVP
from instructors.adapters.discrete import PREDICTIONS, DiscreteVP
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.flow import Flow
from instructors.adapters.karras import Karras
from instructors.denoiser import Denoiser
from instructors.families import OWN

MOST_TIMES = 100_000  # of a schedule; models have a thousand
# The scheduler's class: the adapter, and those of its arguments that the configuration holds.
ADAPTERS: dict[str, tuple[type[Adapter], tuple[str, ...]]] = {
    "EDMEulerScheduler": (Karras, ("sigma_min", "sigma_max", "sigma_data")),
    "ScoreSdeVeScheduler": (ScoreVE, ("sigma_min", "sigma_max")),
    "ContinuousVP": (ContinuousVP, ("beta_d", "beta_min", "steps", "epsilon_t")),
    "ContinuousVE": (ContinuousVE, ("sigma_min", "sigma_max")),
    "DiscreteVP": (DiscreteVP, ("alphas_cumprod", "prediction")),
}


def is_ours(denoiser: Denoiser) -> bool:
    """Whether diffusers lacks its network, or what stands around it: only we read its folder."""
    network = type(denoiser.network).__name__
    return network in OWN or isinstance(denoiser, ContinuousVP | ContinuousVE)


def save(folder: Path, denoiser: Denoiser) -> None:
    """Write what `instructors.load.load` makes the same denoiser of.

    Args:
        folder: Exists.
        denoiser: Its network has diffusers' `save_pretrained`.

    Raises:
        InstilError: It has not, or the denoiser has no layout.
    """
    network: Any = denoiser.network
    if not hasattr(network, "save_pretrained"):
        raise InstilError(
            f"no layout for a {type(denoiser).__name__} with a {type(network).__name__} network"
        )
    levels = _levels(denoiser)
    network.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", levels)


def _levels(denoiser: Denoiser) -> dict[str, Any]:
    """The scheduler's configuration."""
    if isinstance(denoiser, DiscreteVP):
        alphas = 1 / (1 + (2 * denoiser.log_sigmas.double()).exp())
        values = {"alphas_cumprod": alphas.tolist(), "prediction": denoiser.prediction}
        return {"_class_name": "DiscreteVP"} | values
    for name, (adapter, keys) in ADAPTERS.items():
        if type(denoiser) is adapter:
            return {"_class_name": name} | {key: getattr(denoiser, key) for key in keys}
    raise InstilError(f"no layout for a {type(denoiser).__name__}")


def from_config(
    scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
) -> Adapter:
    """The adapter that a scheduler's configuration asks for.

    Args:
        scheduler: Of diffusers, or as `save` writes it.
        network: With a configuration of its own.
        shape: One sample without the batch axis.
        classes: Number of class labels; 0 for none.

    Raises:
        ValueError: The schedule is not supported, or a value is missing or makes none.
    """
    try:
        return _by_schedule(scheduler, network, shape, classes)
    except KeyError as error:
        raise ValueError(f"its scheduler names no {error}") from None
    except TypeError as error:
        what = str(error).partition("\n")[0]
        raise ValueError(f"its scheduler holds values of another kind ({what})") from None
    except NotImplementedError as error:  # by diffusers, of settings it does not know
        raise ValueError(f"schedule: {error}") from None


def _by_schedule(
    scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
) -> Adapter:
    """Each branch is one kind of schedule; what none of them knows is refused."""
    name = str(scheduler.get("_class_name"))
    prediction = scheduler.get("prediction_type", "epsilon")
    if scheduler.get("predict_epsilon") is False:  # as the first releases of diffusers said it
        prediction = "sample"
    flow = name == "FlowMatchEulerDiscreteScheduler" and not scheduler.get("invert_sigmas")
    if flow or prediction == "flow_prediction":
        return Flow(network, shape, classes)
    unusual = {
        "EDMEulerScheduler": prediction != "epsilon",
        "ScoreSdeVeScheduler": network.config.get("time_embedding_type") != "fourier",
    }
    if name in ADAPTERS and not unusual.get(name):
        adapter, keys = ADAPTERS[name]
        values = {key: scheduler[key] for key in keys}
        if "alphas_cumprod" in values:
            values["alphas_cumprod"] = torch.tensor(values["alphas_cumprod"], dtype=torch.float64)
        build: Any = adapter
        return build(network, shape, classes=classes, **values)
    if "beta_schedule" in scheduler and prediction in PREDICTIONS:
        from diffusers import DDPMScheduler  # seconds to import

        if scheduler.get("num_train_timesteps", 1000) > MOST_TIMES:
            raise ValueError(f"schedule: more than {MOST_TIMES:,} times")
        schedule: Any = DDPMScheduler.from_config(dict(scheduler))
        return DiscreteVP(network, shape, schedule.alphas_cumprod, prediction, classes)
    raise ValueError(
        f"scheduler {name} with prediction type {prediction!r} is not supported; "
        f"supported: EDMEulerScheduler (epsilon), FlowMatchEulerDiscreteScheduler, "
        f"ScoreSdeVeScheduler (fourier), or one with a beta_schedule and a prediction type of "
        f"{', '.join(PREDICTIONS)}"
    )
