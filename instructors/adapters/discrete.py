"""diffusers networks on a discrete variance-preserving schedule: eps-, v- and x0-prediction."""

from typing import Literal

import torch
from torch import Tensor, nn

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.denoiser import Condition

PREDICTIONS = ("epsilon", "v_prediction", "sample")
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
        network: Called as `instructors.families.call` says; a learned variance is dropped.
        shape: One sample without the batch axis.
        alphas_cumprod: (T,) a**2 for t = 0, …, T - 1, as diffusers' schedulers hold it. A last
            level without signal is left out.
        prediction: What the network predicts; one of `PREDICTIONS`.
        classes: Number of class labels; 0 for none.

    Raises:
        ValueError: The prediction type is unknown, or does not fit a last level without signal, or
            there are no two levels that rise.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        alphas_cumprod: Tensor,
        prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
        classes: int = 0,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction type {prediction!r}: expected one of {PREDICTIONS}")
        if prediction == "epsilon" and (alphas_cumprod[-1:] == 0).any():
            raise ValueError(
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
