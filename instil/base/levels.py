"""How the noise level sigma is drawn.

Each distribution is its quantile function, truncated to the range the network was trained for, so
that a level is a pure function of one uniform number. Sigma is in data units: the standard
deviation of the added noise, images being scaled to [-1, 1]. Recipes are validated without torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from instil.base.config import Choice, OneOf
from instil.base.errors import InstilError

if TYPE_CHECKING:
    from torch import Tensor


class LevelDistribution(Choice, ABC):
    """Base of the distributions of sigma; a subclass defines `quantile`.

    Attributes:
        sigma_min: Smallest noise level; null for the smallest the network was trained for.
        sigma_max: Largest noise level; null for the largest the network was trained for.
    """

    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min and self.sigma_max and self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min} must lie below sigma_max {self.sigma_max}"
            )
        return self

    def sample(self, uniform: Tensor, low: float, high: float) -> Tensor:
        """Map (B,) uniform numbers in (0, 1) to sigmas.

        Args:
            uniform: (B,) in (0, 1).
            low: Smallest level the network was trained for.
            high: Largest one.

        Returns:
            (B,), of the dtype of `uniform`, within both ranges.

        Raises:
            InstilError: The range given here and the network's do not overlap.
        """
        low, high = max(low, self.sigma_min or low), min(high, self.sigma_max or high)
        if low >= high:
            raise InstilError(
                f"levels: sigma in [{self.sigma_min}, {self.sigma_max}] does not meet the "
                f"network's own range, which leaves [{low}, {high}]; widen the range"
            )
        return self.quantile(uniform, low, high).clamp(low, high).to(uniform.dtype)

    def highest(self, low: float, high: float) -> float:
        """The largest level that can be drawn for a network trained on [low, high]."""
        return min(high, self.sigma_max or high)

    @abstractmethod
    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        """The quantile function of the distribution truncated to [low, high].

        Args:
            uniform: (B,) in (0, 1).
            low: The smallest level.
            high: The largest level.

        Returns:
            (B,), in [low, high] up to rounding.
        """


class LogNormal(LevelDistribution):
    """log sigma ~ N(mean, std**2), truncated.

    Attributes:
        mean: Mean of log sigma.
        std: Standard deviation of log sigma.

    Source:
        Karras et al. 2022, arXiv 2206.00364, table 1 (training, mean -1.2, std 1.2).
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -1.2
    std: PositiveFloat = 1.2

    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        first, last = (self._cdf(math.log(sigma)) for sigma in (low, high))
        level = first + (last - first) * uniform.double()
        normal = math.sqrt(2) * (2 * level - 1).erfinv()
        return (self.mean + self.std * normal).exp()

    def _cdf(self, log_sigma: float) -> float:
        return 0.5 * math.erfc((self.mean - log_sigma) / (self.std * math.sqrt(2)))


class LogUniform(LevelDistribution):
    """log sigma uniform, so every octave of noise is equally likely."""

    kind: Literal["log_uniform"] = "log_uniform"

    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        first, last = math.log(low), math.log(high)
        return (first + (last - first) * uniform).exp()


class KarrasUniform(LevelDistribution):
    """Levels of a Karras sampler, at times t uniform on [t_min, t_max].

    sigma = (high**(1/rho) + t (low**(1/rho) - high**(1/rho)))**rho, so t = 0 is the highest level.
    SiD draws 1 - t from [0, 0.8] on the range [0.002, 80], which is `t_min = 0.2`.

    Attributes:
        rho: Curvature of the spacing; larger values give more low levels.
        t_min: Smallest time; 0 is the highest noise level.
        t_max: Largest time; 1 is the lowest noise level.

    Source:
        Karras et al. 2022, arXiv 2206.00364, eq. 5; Zhou et al. 2024, arXiv 2404.04057 (SiD).
    """

    kind: Literal["karras_uniform"] = "karras_uniform"
    rho: PositiveFloat = 7.0
    t_min: Annotated[float, Field(ge=0, lt=1)] = 0.0
    t_max: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _times_ordered(self) -> Self:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} must lie below t_max {self.t_max}")
        return self

    def highest(self, low: float, high: float) -> float:
        low, high = max(low, self.sigma_min or low), super().highest(low, high)
        return self._level(self.t_min, low, high)

    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        return self._level(self.t_min + (self.t_max - self.t_min) * uniform, low, high)

    def _level(self, time: Any, low: float, high: float) -> Any:
        first, last = (sigma ** (1 / self.rho) for sigma in (low, high))
        return (last + time * (first - last)) ** self.rho


class LogitNormal(LevelDistribution):
    """Times of a rectified flow, logit t ~ N(mean, std**2), shifted for the resolution.

    With x_t = (1 - t) x + t n the noise level is sigma = t / (1 - t), so logit t is log sigma, and
    the shift t -> shift t / (1 + (shift - 1) t) multiplies sigma by `shift`.

    Attributes:
        mean: Mean of logit t, before the shift.
        std: Standard deviation of logit t.
        shift: Factor on sigma, larger at higher resolutions.

    Source:
        Esser et al. 2024, arXiv 2403.03206, eq. 19 (mean 0, std 1) and eq. 23 (shift 3 at 1024**2).
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: PositiveFloat = 1.0
    shift: PositiveFloat = 1.0

    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        mean = self.mean + math.log(self.shift)
        return LogNormal(mean=mean, std=self.std).quantile(uniform, low, high)


class FlowUniform(LevelDistribution):
    """Times of a rectified flow, t uniform, shifted for the resolution.

    Attributes:
        shift: Factor on sigma, as in `LogitNormal`.
    """

    kind: Literal["flow_uniform"] = "flow_uniform"
    shift: PositiveFloat = 1.0

    def quantile(self, uniform: Tensor, low: float, high: float) -> Tensor:
        first, last = (sigma / (self.shift + sigma) for sigma in (low, high))
        time = first + (last - first) * uniform.double()
        return self.shift * time / (1 - time)


Levels = Annotated[
    LevelDistribution, OneOf(LogNormal, LogUniform, KarrasUniform, LogitNormal, FlowUniform)
]
