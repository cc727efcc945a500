"""A denoiser as a folder, `unet/` and `scheduler/` as diffusers lays them out.

Where diffusers has no scheduler for what stands around a network, the scheduler's configuration
names our adapter.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from instil.checkpoint import put, reason
from instil.errors import InstilError
from instil.report import write_json
from instructors.adapter import Adapter
from instructors.continuous import ContinuousVE, ContinuousVP
from instructors.denoiser import Denoiser
from instructors.discrete import DiscreteVP
from instructors.exploding import ScoreVE
from instructors.families import OWN
from instructors.karras import Karras

# The scheduler's class: the adapter, and those of its arguments that the configuration holds.
ADAPTERS: dict[str, tuple[type[Adapter], tuple[str, ...]]] = {
    "EDMEulerScheduler": (Karras, ("sigma_min", "sigma_max", "sigma_data")),
    "ScoreSdeVeScheduler": (ScoreVE, ("sigma_min", "sigma_max")),
    "ContinuousVP": (ContinuousVP, ("beta_d", "beta_min", "steps", "epsilon_t")),
    "ContinuousVE": (ContinuousVE, ("sigma_min", "sigma_max")),
    "DiscreteVP": (DiscreteVP, ("alphas_cumprod", "prediction")),
}


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` if the block succeeds.

    Raises:
        OSError: It could not be written; the message names `folder`.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        put(partial, folder)
    except (OSError, SafetensorError) as error:  # diffusers' own name no folder
        raise OSError(f"{folder}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_ours(denoiser: Denoiser) -> bool:
    """Whether diffusers lacks its network, or what stands around it: only we read its folder."""
    network = type(getattr(denoiser, "network", None)).__name__
    return network in OWN or isinstance(denoiser, ContinuousVP | ContinuousVE)


def save(folder: Path, denoiser: Denoiser) -> None:
    """Write what `instructors.load.load` makes the same denoiser of.

    Args:
        folder: Exists.
        denoiser: Its network has diffusers' `save_pretrained`.

    Raises:
        InstilError: It has not, or the denoiser has no layout.
    """
    network: Any = getattr(denoiser, "network", None)
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
    config: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
) -> Adapter:
    """The adapter of a scheduler's configuration, of a class in `ADAPTERS`.

    Raises:
        KeyError: A value is missing.
        TypeError: One is of another kind.
        ValueError: One makes no adapter.
    """
    adapter, keys = ADAPTERS[config["_class_name"]]
    values = {key: config[key] for key in keys}
    if "alphas_cumprod" in values:
        values["alphas_cumprod"] = torch.tensor(values["alphas_cumprod"], dtype=torch.float64)
    build: Any = adapter
    return build(network, shape, classes=classes, **values)
