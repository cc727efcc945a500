"""Rectified flow: networks that predict the velocity from data to noise."""

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.denoiser import Condition

# Training draws u from the open interval (0, 1), and u = 1, pure noise, is an infinite sigma: this
# is how near both ends models are used.
LEAST, MOST = 0.001, 0.999


class Flow(Adapter):
    """A network trained on x_u = (1 - u) x + u noise to predict v = noise - x.

    With u = s / (1 + s) its input is x_s / (1 + s), the time T u, and

        D = x_s / (1 + s) - u v

    A schedule's `shift` only says which u are visited, so it is no part of D.

    Args:
        network: Of one of `instructors.families`.
        shape: One sample without the batch axis.
        classes: Number of class labels; 0 for none.
        times: T, the time of pure noise.

    Source:
        Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206 (SD3).
    """

    prediction = "velocity"
    sigma_min = LEAST / (1 - LEAST)
    sigma_max = MOST / (1 - MOST)

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], classes: int = 0, times: int = 1000
    ) -> None:
        super().__init__(network, shape, self.sigma_min, self.sigma_max, classes)
        self.times = times

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        u = sigma / (1 + sigma)
        scaled = noisy / expand(1 + sigma, noisy)
        return scaled - expand(u, noisy) * self.call(scaled, self.times * u, condition)

    def weight(self, sigma: Tensor) -> Tensor:
        return (1 + 1 / sigma) ** 2

    def start(self, unit: Tensor, sigma: float) -> Tensor:
        return unit * (1 + sigma)

    @classmethod
    def from_config(
        cls, scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
    ) -> Self:
        return cls(network, shape, classes, scheduler.get("num_train_timesteps", 1000))

    def scheduler(self, sigma: float) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler  # seconds to import

        # Its step starts where the call's `sigmas` says, for which a shift would be in the way.
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.times)

    def call_arguments(self, sigma: float) -> str:
        return f", sigmas=[{sigma / (1 + sigma):.6g}]"
