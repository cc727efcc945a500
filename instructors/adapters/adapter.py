"""What every adapter shares: a network in its own parameterisation, seen as a denoiser."""

import math
from typing import Any

from torch import Tensor, nn

from instil.base.errors import InstilError
from instructors.denoiser import Condition, Denoiser
from instructors.families import Family, call, family_of


class Adapter(Denoiser):
    """A network and the range of sigma it was trained on.

    Args:
        network: One of `instructors.families`, or with the signature of `UNet2DModel`.
        shape: One sample without the batch axis.
        sigma_min: Smallest level trained.
        sigma_max: Largest level trained.
        classes: Number of class labels; 0 for none.
        family: How the network is called; None for what `instructors.families` says of its class.

    Raises:
        InstilError: The levels are not positive, finite and rising.
    """

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
        return call(self.family, self.network, noisy, time, condition)
