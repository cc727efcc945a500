"""Networks of the score-based SDEs, on the continuous times of EDM's code."""

import math

from torch import Tensor, nn

from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.denoiser import Condition


class ContinuousVP(Adapter):
    """An eps-network of the variance-preserving SDE, D = x - s F(x / sqrt(1 + s**2), (M - 1) t(s)).

        s(t)**2 = exp(beta_d t**2 / 2 + beta_min t) - 1,   t in [epsilon_t, 1]

    The network is never autocast: near t = 1 a rounding of its output costs a hundredfold in D.

    Args:
        network: F, of one of `instructors.families`.
        shape: One sample without the batch axis.
        beta_d: Slope of the noise rate.
        beta_min: The noise rate at t = 0.
        steps: M, the number of integer times that the network's embedding was made for.
        epsilon_t: Least time trained.
        classes: Number of class labels; 0 for none.

    Source:
        Karras et al. 2022, arXiv 2206.00364, table 1 (VP); Song et al. 2021, arXiv 2011.13456.
    """

    exact = True
    prediction = "epsilon"
    scheduler_class = "ContinuousVP"
    scheduler_keys = ("beta_d", "beta_min", "steps", "epsilon_t")
    in_diffusers = False

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
        epsilon_t: float = 1e-5,
        classes: int = 0,
    ) -> None:
        low, high = (_sigma(beta_d, beta_min, time) for time in (epsilon_t, 1.0))
        super().__init__(network, shape, low, high, classes)
        self.beta_d, self.beta_min = beta_d, beta_min
        self.steps, self.epsilon_t = steps, epsilon_t

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s = expand(sigma, noisy)
        time = (self.steps - 1) * self.time(sigma)
        return noisy - s * self.call(noisy / (1 + s**2).sqrt(), time, condition)

    def time(self, sigma: Tensor) -> Tensor:
        """(B,) t of each level."""
        rate = (self.beta_min**2 + 2 * self.beta_d * (sigma**2).log1p()).sqrt()
        return (rate - self.beta_min) / self.beta_d


def _sigma(beta_d: float, beta_min: float, time: float) -> float:
    exponent = beta_d * time**2 / 2 + beta_min * time
    return math.sqrt(math.expm1(exponent)) if exponent < 700 else math.inf  # of float64's range


class ContinuousVE(Adapter):
    """A network of the variance-exploding SDE, D = x + s F(x, ln(s / 2)).

    The network is never autocast, for the reason given at `ContinuousVP`.

    Args:
        network: F, of one of `instructors.families`.
        shape: One sample without the batch axis.
        sigma_min: Smallest level trained.
        sigma_max: Largest level trained.
        classes: Number of class labels; 0 for none.

    Source:
        Karras et al. 2022, arXiv 2206.00364, table 1 (VE); Song et al. 2021, arXiv 2011.13456.
    """

    exact = True
    prediction = "noise"
    scheduler_class = "ContinuousVE"
    scheduler_keys = ("sigma_min", "sigma_max")
    in_diffusers = False

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        classes: int = 0,
    ) -> None:
        super().__init__(network, shape, sigma_min, sigma_max, classes)

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        time = (sigma / 2).log()
        return noisy + expand(sigma, noisy) * self.call(noisy, time, condition)
