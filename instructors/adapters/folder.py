"""A denoiser as a folder, `unet/` and `scheduler/` as diffusers lays them out.

Where diffusers has no scheduler for what stands around a network, the scheduler's configuration
names our adapter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instil.base.errors import InstilError
from instil.base.runs.report import write_json
from instructors.adapters.adapter import Adapter, prediction_of
from instructors.adapters.continuous import ContinuousVE, ContinuousVP
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.flow import Flow
from instructors.adapters.karras import Karras

# The first that reads a scheduler's configuration is taken.
ADAPTERS: tuple[type[Adapter], ...] = (
    *(Flow, Karras, ScoreVE),
    *(ContinuousVP, ContinuousVE, DiscreteVP),
)


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
    (network.save_pretrained if weights else network.save_config)(folder / "unet")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)


def adapter_of(scheduler: Mapping[str, Any], network: Mapping[str, Any]) -> type[Adapter]:
    """The adapter for the configurations of a scheduler and a network.

    Raises:
        InstilError: There is none.
    """
    for adapter in ADAPTERS:
        if adapter.reads(scheduler, network):
            return adapter
    raise InstilError(
        f"scheduler {scheduler.get('_class_name')} with prediction type "
        f"{prediction_of(scheduler)!r} is not supported; supported: "
        f"{', '.join(adapter.supported for adapter in ADAPTERS if adapter.supported)}"
    )


def adapt(
    adapter: type[Adapter],
    scheduler: Mapping[str, Any],
    network: Any,
    shape: tuple[int, ...],
    classes: int,
) -> Adapter:
    """A network as a denoiser.

    Args:
        adapter: One that reads the scheduler.
        scheduler: The configuration, diffusers' or one that `save` has written.
        network: With a configuration of its own.
        shape: One sample without the batch axis.
        classes: Number of class labels; 0 for none.

    Raises:
        InstilError: The schedule is not supported, or a value is missing or makes none.
    """
    try:
        return adapter.from_config(scheduler, network, shape, classes)
    except KeyError as error:
        raise InstilError(f"its scheduler names no {error}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InstilError):
            raise
        reason = str(error).partition("\n")[0]
        raise InstilError(f"its scheduler holds values of another kind ({reason})") from error
    except NotImplementedError as error:  # by diffusers, of settings it does not know
        raise InstilError(f"schedule: {error}") from error
