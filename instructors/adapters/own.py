"""A network of the user's own as a denoiser, told what it predicts and how it is told the noise."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.adapters.adapter import Adapter
from instructors.adapters.discrete import HALF_PRECISION_SIGMA, index_of, levels_of
from instructors.denoiser import Condition
from instructors.families import Family

# Noise levels (B,), in units of the network's images -> its times (B,), the scale of its input (B,)
Time = Callable[[Tensor], tuple[Tensor, Tensor]]
FLOWS = ("data at 1", "noise at 1")
TIMES = (*FLOWS, "sigma", "log sigma / 4")
# What a network may predict, with the times for which it is defined; a function serves them all.
PREDICTS: dict[str, tuple[str, ...]] = {
    "x": (*TIMES, "betas"),
    "noise": (*TIMES, "betas"),
    "velocity": FLOWS,
    "v": ("betas",),
    "F": ("log sigma / 4",),
}
# Flows are rarely trained nearer to either end: a logit-normal time is within 0.01 of it once in a
# hundred thousand draws. The others are EDM's.
RANGES = {"data at 1": (0.01, 100.0), "noise at 1": (0.01, 100.0)}
EDM_RANGE = (0.002, 80.0)
LARGEST_WEIGHT = 5.0


class OwnNetwork(Adapter):
    """A network called as `network(noisy, time)` or `network(noisy, time, label)`.

    In the units of its images z it gets a(s) (z + s noise) at a time t(s), and with z_s = z + s
    noise, the prediction `out` and the time of `noise at 1`,

        x          D = out
        noise      D = z_s - s out
        velocity   D = (z_s - s out) / (1 + s)                         (out = noise - z)
        v          D = (z_s - s out / a) / (1 + s**2)                  (out = a noise - a s z)
        F          D = (sd**2 z_s + s sd sqrt(s**2 + sd**2) out) / (s**2 + sd**2)

    With the time `data at 1` a velocity is z - noise. The denoiser itself takes and returns images
    in [-1, 1], and so does its `sigma`: black to white is 2.

    Args:
        network: (B, *shape) and times (B,), and class numbers (B,) where there are classes, to
            (B, *shape). Wrap it in a module of this signature if it has another.
        shape: One sample without the batch axis, such as (3, 32, 32).
        predicts: The network's output: `x` (the clean image), `noise`, `velocity` (of a flow), `v`
            (of a variance-preserving schedule) or `F` (of EDM).
        time: How the network is told the noise level. `data at 1` and `noise at 1` are flows,
            (1 - u) z + u noise, told 1 - u or u. `sigma` is s itself, and the input is not scaled.
            `log sigma / 4` is EDM's time with EDM's scale of the input. A tensor (T,) of betas is a
            discrete schedule, told the nearest of the integers 0, …, T - 1 as int64. A function
            maps s (B,) to the time (B,) and the scale a (B,) of the input.
        range: Black and white of the network's images.
        classes: Number of class labels; 0 for none.
        null_label: The label that means "no label", for guidance; None if there is none.
        sigma_data: sd, for EDM's scale and F: the standard deviation of the network's data.
        sigma_min: Smallest level trained, of images in [-1, 1]; None for a usual one: 0.01 of the
            network's units for flows, EDM's 0.002, or the first of the betas.
        sigma_max: Largest level trained; None for 100, EDM's 80, or the last of the betas.

    Raises:
        InstilError: An argument does not fit the others, or the network cannot be called so.

    Source:
        Karras et al. 2022, arXiv 2206.00364, eq. 7; Salimans and Ho 2022, arXiv 2202.00512 (v).
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        predicts: Literal["x", "noise", "velocity", "v", "F"],
        time: str | Tensor | Time,
        range: tuple[float, float] = (-1.0, 1.0),  # noqa: A002, the word of GANs' recipes
        classes: int = 0,
        null_label: int | None = None,
        sigma_data: float = 0.5,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        low, high = range
        _check(predicts, time, low, high, classes, null_label)
        levels = levels_of((1 - time.double()).cumprod(0)) if isinstance(time, Tensor) else None
        if levels is None:
            usual = RANGES.get(time, EDM_RANGE) if isinstance(time, str) else EDM_RANGE
        else:
            usual = (levels[0].item(), levels[-1].item())
        contrast = (high - low) / 2
        first = usual[0] / contrast if sigma_min is None else sigma_min
        last = usual[1] / contrast if sigma_max is None else sigma_max
        super().__init__(network, shape, first, last, classes, OWN)
        table = torch.empty(0) if levels is None else levels.log().float()
        self.register_buffer("log_sigmas", table, persistent=False)
        self.kind: Any = "betas" if isinstance(time, Tensor) else time
        self.prediction, self.sigma_data = predicts, sigma_data
        self.middle, self.contrast = (low + high) / 2, contrast
        self.exact = predicts == "noise" and self.sigma_max > HALF_PRECISION_SIGMA
        if null_label is not None:
            self.set_null(Condition(label=torch.tensor([null_label])))
        self._probe()

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        images = self.middle + self.contrast * noisy
        time, scale = self.time(self.contrast * sigma)
        skip, gain = self._coefficients(self.contrast * sigma, scale)
        output = self.call(expand(scale, noisy) * images, time, condition)
        denoised = expand(skip, noisy) * images + expand(gain, noisy) * output
        return (denoised - self.middle) / self.contrast

    def time(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The network's times (B,) at noise levels (B,) in its units, and its input's scales."""
        match self.kind:
            case "data at 1":
                return 1 / (1 + level), 1 / (1 + level)
            case "noise at 1":
                return level / (1 + level), 1 / (1 + level)
            case "sigma":
                return level, torch.ones_like(level)
            case "log sigma / 4":
                return level.log() / 4, (level**2 + self.sigma_data**2).rsqrt()
            case "betas":
                return index_of(self.log_sigmas, level).round().long(), (1 + level**2).rsqrt()
        return self.kind(level)

    def weight(self, sigma: Tensor) -> Tensor:
        # 1 + SNR has no bound, and would multiply what an x-network is off at the least noise by
        # thousands: a run diverges. Every other output has unit scale under its own weight.
        if self.prediction == "x":
            return (1 + sigma**-2).clamp(max=LARGEST_WEIGHT)
        level = self.contrast * sigma
        return (self.contrast / self._coefficients(level, self.time(level)[1])[1]) ** 2

    def round_sigma(self, sigma: Tensor) -> Tensor:
        if self.kind != "betas":
            return sigma
        index = index_of(self.log_sigmas, self.contrast * sigma).round().long()
        return (self.log_sigmas[index].exp() / self.contrast).to(sigma.dtype)

    def _coefficients(self, s: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) factors of z_s and of the output in D, at levels s (B,) in the network's units."""
        match self.prediction:
            case "x":
                return torch.zeros_like(s), torch.ones_like(s)
            case "noise":
                return torch.ones_like(s), -s
            case "velocity":
                return 1 / (1 + s), (s if self.kind == "data at 1" else -s) / (1 + s)
            case "v":
                return 1 / (1 + s**2), -s / (scale * (1 + s**2))
        sd = self.sigma_data
        total = s**2 + sd**2
        return sd**2 / total, s * sd / total.sqrt()

    @torch.no_grad()
    def _probe(self) -> None:
        """Call the network once, so that what it cannot take is said before a run."""
        network: Any = self.network
        known = next(network.parameters(), torch.empty(0))
        if known.is_meta:
            return
        noisy = torch.zeros(2, *self.shape, dtype=known.dtype, device=known.device)
        sigma = noisy.new_full((2,), self.nearest(math.sqrt(self.sigma_min * self.sigma_max)))
        labels = torch.zeros(2, dtype=torch.int64, device=known.device)
        time, scale = self.time(self.contrast * sigma)
        called = f"a batch {tuple(noisy.shape)}, times (2,)" + ", labels (2,)" * bool(self.classes)
        condition = Condition(label=labels) if self.classes else Condition()
        training = network.training
        network.eval()
        try:
            output = self.call(noisy, time, condition)
        except Exception as error:  # code of the user's, which may raise anything
            reason = " ".join(str(error).split())
            raise InstilError(
                f"network: cannot be called with {called} ({reason}); wrap it in a module that can"
            ) from error
        finally:
            network.train(training)
        if output.shape != noisy.shape or scale.shape != sigma.shape:
            raise InstilError(
                f"network: gives {tuple(output.shape)} for {called}; expected {tuple(noisy.shape)}"
            )


def _positional(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(noisy, time, *condition.values())


OWN = Family("", _positional)


def _check(
    predicts: str,
    time: str | Tensor | Time,
    low: float,
    high: float,
    classes: int,
    null_label: int | None,
) -> None:
    """Refuse arguments that do not fit together."""
    if predicts not in PREDICTS:
        raise InstilError(f"predicts: {predicts!r}; expected one of {', '.join(PREDICTS)}")
    if isinstance(time, str) and time not in TIMES:
        raise InstilError(
            f"time: {time!r}; expected one of {', '.join(map(repr, TIMES))}, a tensor of betas or "
            "a function of sigma"
        )
    named = "betas" if isinstance(time, Tensor) else time
    if isinstance(named, str) and named not in PREDICTS[predicts]:
        raise InstilError(
            f"predicts: {predicts} is not defined for the time {named!r}; expected time to be one "
            f"of {', '.join(map(repr, PREDICTS[predicts]))}, or a function of sigma"
        )
    if not -math.inf < low < high < math.inf:
        raise InstilError(f"range: {low} to {high}; expected black below white, such as (0, 1)")
    if null_label is not None and (not classes or 0 <= null_label < classes):
        raise InstilError(
            f"null_label: {null_label} is one of {classes} classes; expected another number, and "
            "classes without it"
        )
