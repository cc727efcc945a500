"""What every adapter shares: a network in its own parameterisation, seen as a denoiser."""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from instil.base.errors import InstilError
from instructors.denoiser import Condition, Denoiser
from instructors.families import Family, family_of


class Adapter(Denoiser):
    """A network and the range of sigma it was trained on.

    Args:
        network: One of `instructors.families`, or with the signature of `UNet2DModel`.
        shape: One sample without the batch axis.
        sigma_min: Smallest level trained.
        sigma_max: Largest level trained.
        classes: Number of class labels; 0 for none.
        family: How the network is called; None for what `instructors.families` says of its class.

    Attributes:
        scheduler_class: The scheduler's class in a folder of our layout; empty if there is none.
        scheduler_keys: The constructor's arguments that the scheduler's configuration holds.
        in_diffusers: Whether a diffusers scheduler does the same around a network.
        unit_range: Whether samples are images in [0, 1].
        understood: Settings that networks refuse, and that this parameterisation asks for.

    Raises:
        InstilError: The levels are not positive, finite and rising.
    """

    scheduler_class: str = ""
    scheduler_keys: tuple[str, ...] = ()
    in_diffusers: bool = True
    unit_range: bool = False
    understood: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        sigma_min: float,
        sigma_max: float,
        classes: int = 0,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max < math.inf:
            raise InstilError(
                f"sigma from {sigma_min} to {sigma_max}: expected two positive numbers that rise"
            )
        self.network = network
        self.family = family or family_of(network)
        self.shape = tuple(shape)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.classes = classes
        config: Any = getattr(network, "config", None)
        channels = getattr(config, "in_channels", None)
        self.learned_variance = bool(channels) and config.out_channels == 2 * channels

    def call(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Evaluate the network: (B, *shape), scaled as it wants it, and (B,) times as it wants."""
        return self.family.call(self.network, noisy, time, condition)

    @classmethod
    def from_config(
        cls, scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
    ) -> Self:
        """The adapter for a scheduler's configuration, around a network.

        Raises:
            InstilError: The schedule is not supported.
            KeyError: A value is missing.
            TypeError: A value is of another type.
        """
        values: Any = {key: scheduler[key] for key in cls.scheduler_keys}
        return cls(network, shape, classes=classes, **values)

    def config(self) -> dict[str, Any]:
        """The scheduler's configuration in a folder of our layout; `from_config` reads it.

        Raises:
            InstilError: There is none.
        """
        if not self.scheduler_class:
            raise InstilError(f"no layout for a {type(self).__name__}")
        values = {key: getattr(self, key) for key in self.scheduler_keys}
        return {"_class_name": self.scheduler_class} | values

    def scheduler(self, sigma: float) -> Any:
        """The diffusers scheduler whose single step is exactly D(start(z), sigma).

        Raises:
            InstilError: There is none.
        """
        raise self.no_layout()

    def pipeline(self, sigma: float) -> Any:
        """The diffusers pipeline of images, of nothing but the network and `scheduler(sigma)`.

        Raises:
            InstilError: There is none.
        """
        raise self.no_layout()

    def call_arguments(self, sigma: float) -> str:
        """The arguments of a pipeline's call for one step from sigma, each after a comma."""
        return ""

    def no_layout(self) -> InstilError:
        """The error that says that diffusers cannot express this denoiser."""
        asked = " with class labels" if self.classes else ""
        return InstilError(
            f"export: no plain diffusers layout for a {type(self).__name__} student{asked} and a "
            f"{type(self.network).__name__} network"
        )
