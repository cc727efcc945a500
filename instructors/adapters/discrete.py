"""diffusers networks on a discrete variance-preserving schedule: eps-, v- and x0-prediction."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.adapters.schedules import PREDICTIONS, SCHEDULES, prediction_of
from instructors.denoiser import Condition

MOST_TIMES = 100_000  # of a schedule; models have a thousand
# D = x - s eps: a rounding of eps in half precision (relative 2**-8 for bf16) costs s times as much
# in D. Above this level that is no longer small beside the data, so eps networks run in float32.
HALF_PRECISION_SIGMA = 10.0


class DiscreteVP(Adapter):
    """A network trained on x_t = a x + b noise, a**2 + b**2 = 1, at integer times t.

    With s = b / a, a = 1 / sqrt(1 + s**2), its input is a x_s at t(s), and

        epsilon        D = x_s - s out
        v_prediction   D = a**2 x_s - a s out       (v = a noise - b x)
        sample         D = out

    Between two trained times t(s) interpolates log s linearly, as k-diffusion does.

    Args:
        network: Of one of `instructors.families`; a learned variance is dropped.
        shape: One sample without the batch axis.
        alphas_cumprod: (T,) a**2 for t = 0, …, T - 1, as diffusers' schedulers hold it. A last
            level without signal is left out.
        prediction: What the network predicts; one of `PREDICTIONS`.
        classes: Number of class labels; 0 for none.

    Raises:
        InstilError: The prediction type is unknown, or does not fit a last level without signal, or
            there are no two levels that rise.
    """

    scheduler_class = "DiscreteVP"

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        alphas_cumprod: Tensor,
        prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
        classes: int = 0,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise InstilError(f"prediction type {prediction!r}: expected one of {PREDICTIONS}")
        if prediction == "epsilon" and (alphas_cumprod[-1:] == 0).any():
            raise InstilError(
                "schedule: its last level holds no signal (zero terminal SNR), where epsilon says "
                "nothing about the data; expected v_prediction or sample, or a schedule without "
                "rescale_betas_zero_snr"
            )
        sigmas = levels_of(alphas_cumprod)
        super().__init__(network, shape, sigmas[0].item(), sigmas[-1].item(), classes)
        self.register_buffer("log_sigmas", sigmas.log().float(), persistent=False)
        self.prediction = prediction
        self.exact = prediction == "epsilon" and self.sigma_max > HALF_PRECISION_SIGMA

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s = expand(sigma, noisy)
        a = (1 + s**2).rsqrt()
        output = self.call(a * noisy, self.time(sigma), condition)
        if self.prediction == "epsilon":
            return noisy - s * output
        if self.prediction == "v_prediction":
            return a**2 * noisy - a * s * output
        return output

    def time(self, sigma: Tensor) -> Tensor:
        """(B,) fractional time index t of each level, clamped to the schedule."""
        return index_of(self.log_sigmas, sigma)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.log_sigmas[self.time(sigma).round().long()].exp().to(sigma.dtype)

    def weight(self, sigma: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return sigma**-2
        if self.prediction == "v_prediction":
            return 1 + sigma**-2
        return torch.ones_like(sigma)

    def start(self, unit: Tensor, sigma: float) -> Tensor:
        return unit * (sigma**2 + 1) ** 0.5

    @classmethod
    def from_config(
        cls, scheduler: Mapping[str, Any], network: Any, shape: tuple[int, ...], classes: int
    ) -> Self:
        name = scheduler["_class_name"]
        if name == cls.scheduler_class:
            alphas = torch.tensor(scheduler["alphas_cumprod"], dtype=torch.float64)
            return cls(network, shape, alphas, scheduler["prediction"], classes)
        import diffusers  # seconds to import

        if scheduler.get("num_train_timesteps", 1000) > MOST_TIMES:
            raise InstilError(f"schedule: more than {MOST_TIMES:,} times")
        process = {key: scheduler[key] for key in SCHEDULES[name].process if key in scheduler}
        alphas = getattr(diffusers, name).from_config(process).alphas_cumprod
        if process.get("rescale_betas_zero_snr"):
            alphas[-1] = 0  # some classes put a small number there, so that they can divide by it
        prediction: Any = prediction_of(scheduler)
        return cls(network, shape, alphas, prediction, classes)

    def config(self) -> dict[str, Any]:
        alphas = 1 / (1 + (2 * self.log_sigmas.double()).exp())
        values = {"alphas_cumprod": alphas.tolist(), "prediction": self.prediction}
        return super().config() | values

    def scheduler(self, sigma: float) -> Any:
        from diffusers import DDPMScheduler, DPMSolverMultistepScheduler  # seconds to import

        # The schedule ends at the student's level, so that its one step starts there.
        last = int(self.time(self.log_sigmas.new_tensor([sigma])).round().item())
        alphas = (1 + (2 * self.log_sigmas[: last + 1].double()).exp()).reciprocal()
        betas = 1 - alphas / alphas.roll(1).index_fill(0, alphas.new_zeros(1).long(), 1.0)
        schedule: dict[str, Any] = {
            "num_train_timesteps": last + 1,
            "trained_betas": betas.tolist(),
            "timestep_spacing": "trailing",
            "steps_offset": 1,  # without effect under this spacing; some pipelines ask for it
            "prediction_type": self.prediction,
        }
        if not self.learned_variance or self.family.latent:
            return DDPMScheduler(variance_type="fixed_small", clip_sample=False, **schedule)
        # The DDPM step would add noise of the learned variance. This one drops the variance, of
        # images with three channels, and its first-order step to no noise is D itself.
        if self.shape[0] != 3:
            raise InstilError(
                f"export: a learned variance beside {self.shape[0]} channels has no plain "
                "diffusers layout, which knows it for three"
            )
        return DPMSolverMultistepScheduler(
            variance_type="learned_range", solver_order=1, final_sigmas_type="zero", **schedule
        )

    def pipeline(self, sigma: float) -> Any:
        from diffusers import ConsistencyModelPipeline, DDPMPipeline  # seconds to import

        # The first is the only pipeline that passes class labels; its scheduler may be any.
        kind: Any = ConsistencyModelPipeline if self.classes else DDPMPipeline
        return kind(self.network, self.scheduler(sigma))


def levels_of(alphas_cumprod: Tensor) -> Tensor:
    """The noise levels b / a of a schedule, float64; a last one without signal is left out.

    Raises:
        InstilError: There are no two levels that rise.
    """
    alphas = alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    if (alphas[-1:] == 0).any():
        sigmas = sigmas[:-1]  # an infinite sigma
    rising = sigmas.isfinite().all() and (sigmas.diff() > 0).all()
    if len(sigmas) < 2 or not rising:
        raise InstilError("schedule: its noise levels do not rise from finite to finite ones")
    return sigmas


def index_of(log_sigmas: Tensor, sigma: Tensor) -> Tensor:
    """(B,) fractional index of levels (B,) in a rising table (T,), clamped to its ends."""
    log_sigma = sigma.log().to(log_sigmas.dtype)
    upper = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(log_sigmas) - 1)
    below, above = log_sigmas[upper - 1], log_sigmas[upper]
    fraction = ((log_sigma - below) / (above - below)).clamp(0, 1)
    return upper - 1 + fraction
