"""Networks with the preconditioning of EDM."""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.schedules import prediction_of
from instructors.denoiser import Condition


class Karras(Adapter):
    """An EDM network, D = c_skip x + c_out F(c_in x, c_noise).

        c_skip = sd**2 / (s**2 + sd**2)     c_out = s sd / sqrt(s**2 + sd**2)
        c_in = 1 / sqrt(s**2 + sd**2)       c_noise = ln(s) / 4

    This is what diffusers' `EDMEulerScheduler` does around a network. Under v-prediction the
    network's output is -F; with sd = 1 that is `EulerDiscreteScheduler` on continuous times.

    Args:
        network: F, of one of `instructors.families`.
        shape: One sample without the batch axis.
        sigma_min: Smallest level trained.
        sigma_max: Largest level trained.
        sigma_data: sd, the standard deviation of the data the network was trained for.
        classes: Number of class labels; 0 for none.
        prediction: "epsilon" where the output is F, "v_prediction" where it is -F.

    Raises:
        InstilError: As `Adapter`, or sd is not positive.

    Source:
        Karras et al. 2022, arXiv 2206.00364, table 1 and eq. 7.
    """

    scheduler_class = "EDMEulerScheduler"
    scheduler_keys = ("sigma_min", "sigma_max", "sigma_data")

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        classes: int = 0,
        prediction: str = "epsilon",
    ) -> None:
        super().__init__(network, shape, sigma_min, sigma_max, classes)
        if not 0 < sigma_data < math.inf:
            raise InstilError(f"sigma_data {sigma_data}: expected a positive number")
        self.sigma_data = sigma_data
        self.sign = -1 if prediction == "v_prediction" else 1
        self.prediction = "v_prediction" if self.sign < 0 else "EDM's F"

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s, sd = expand(sigma, noisy), self.sigma_data
        total = (s**2 + sd**2).sqrt()
        output = self.call(noisy / total, sigma.log() / 4, condition)
        return (sd / total) ** 2 * noisy + self.sign * s * sd / total * output

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def start(self, unit: Tensor, sigma: float) -> Tensor:
        # diffusers' EDMEulerScheduler starts from this scale (its `init_noise_sigma`).
        return unit * (sigma**2 + 1) ** 0.5

    @classmethod
    def from_config(
        cls, scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
    ) -> Self:
        prediction = prediction_of(scheduler)
        if scheduler["_class_name"] == "EulerDiscreteScheduler":
            levels = DiscreteVP.from_config(scheduler, network, shape, classes)
            low = scheduler.get("sigma_min") or levels.sigma_min
            high = scheduler.get("sigma_max") or levels.sigma_max
            return cls(network, shape, low, high, 1.0, classes, prediction)
        low, high, data = (scheduler[key] for key in cls.scheduler_keys)
        return cls(network, shape, low, high, data, classes, prediction)

    def config(self) -> dict[str, Any]:
        v = {"prediction_type": "v_prediction"} if self.sign < 0 else {}
        return super().config() | v

    def scheduler(self, sigma: float) -> Any:
        from diffusers import EDMEulerScheduler  # seconds to import

        return EDMEulerScheduler(
            sigma_min=self.sigma_min,
            sigma_max=sigma,
            sigma_data=self.sigma_data,
            prediction_type="v_prediction" if self.sign < 0 else "epsilon",
        )

    def pipeline(self, sigma: float) -> Any:
        from diffusers import ConsistencyModelPipeline  # seconds to import

        # The only pipeline that scales as EDM does; its scheduler may be any.
        network: Any = self.network
        return ConsistencyModelPipeline(network, self.scheduler(sigma))
