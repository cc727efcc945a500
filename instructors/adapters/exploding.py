"""Score networks on a variance-exploding schedule: NCSN++ as diffusers publishes it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.denoiser import Condition


class ScoreVE(Adapter):
    """A network whose output is the score of x + s noise itself, at the time s.

        D = x_s + s**2 out

    These models see images in [0, 1], so sigma is in those units and a codec stretches samples. The
    network is never autocast, for the reason given at `ContinuousVP`.

    Args:
        network: Of one of `instructors.families`; divides by s inside.
        shape: One sample without the batch axis.
        sigma_min: Smallest level trained.
        sigma_max: Largest level trained.
        classes: Number of class labels; 0 for none.

    Source:
        Song et al. 2021, arXiv 2011.13456.
    """

    exact = True
    prediction = "score"
    scheduler_class = "ScoreSdeVeScheduler"
    scheduler_keys = ("sigma_min", "sigma_max")
    unit_range = True
    # NCSN++ alone divides by sigma inside, and centres images in [0, 1].
    understood = ("time_embedding_type", "center_input_sample")

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        classes: int = 0,
    ) -> None:
        super().__init__(network, shape, sigma_min, sigma_max, classes)

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return noisy + expand(sigma, noisy) ** 2 * self.call(noisy, sigma, condition)

    @classmethod
    def from_config(
        cls, scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
    ) -> "ScoreVE":
        if network.config.time_embedding_type != "fourier":
            raise InstilError(
                "a network under ScoreSdeVeScheduler is supported with time_embedding_type=fourier "
                "alone, since it is to divide by sigma inside"
            )
        low, high = (scheduler[key] for key in cls.scheduler_keys)
        low = low / 2 if low == high else low  # a student's, which is read at one level
        return cls(network, shape, low, high, classes)

    def scheduler(self, sigma: float) -> Any:
        from diffusers import ScoreSdeVeScheduler  # seconds to import

        # Its one step goes from sigma_max to no noise, uncorrected.
        return ScoreSdeVeScheduler(sigma_min=sigma, sigma_max=sigma, correct_steps=0)

    def pipeline(self, sigma: float) -> Any:
        from diffusers import ScoreSdeVePipeline  # seconds to import

        if self.classes:
            raise self.no_layout()
        network: Any = self.network
        return ScoreSdeVePipeline(network, self.scheduler(sigma))
