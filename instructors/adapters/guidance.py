"""Denoisers made of denoisers: classifier-free guidance, and several instructors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from instil.base.errors import InstilError
from instil.base.shapes import expand
from instructors.denoiser import Condition, Denoiser


class _Wrapper(Denoiser):
    """Delegates everything but `denoise` to the first denoiser."""

    def __init__(self, first: Denoiser) -> None:
        super().__init__()
        self.first = first
        self.shape, self.classes, self.text = first.shape, first.classes, first.text
        self.sigma_min, self.sigma_max = first.sigma_min, first.sigma_max
        self.sampled = first.sampled

    def weight(self, sigma: Tensor) -> Tensor:
        return self.first.weight(sigma)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.first.round_sigma(sigma)

    def start(self, unit: Tensor, sigma: float) -> Tensor:
        return self.first.start(unit, sigma)

    def null(self, count: int) -> Condition:
        return self.first.null(count)

    def base(self) -> Denoiser:
        return self.first.base()


class Guided(_Wrapper):
    """Classifier-free guidance, D = D(null) + scale (D(condition) - D(null)).

    Guidance is linear in the output of any network here, so this is what samplers do to eps, v or
    velocities.

    Args:
        denoiser: A denoiser with a null condition.
        scale: 1 changes nothing, 0 ignores the condition.

    Raises:
        ValueError: The denoiser has no null condition.

    Source:
        Ho and Salimans 2022, arXiv 2207.12598.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__(denoiser)
        denoiser.null(1)
        self.scale = scale
        self.evaluations = 2 * denoiser.evaluations

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        both = Condition.cat([condition, self.null(len(noisy))])
        denoised = self.first(noisy.repeat(2, *(1,) * (noisy.dim() - 1)), sigma.repeat(2), both)
        wanted, null = denoised.chunk(2)
        return null + self.scale * (wanted - null)


class Blend(_Wrapper):
    """A weighted sum of scores, D = x + sum_k w_k(sigma) (D_k - x).

    At each sigma it is the score of the product of the noisy laws, prod_k p_k(x_sigma)**w_k. These
    products are not noisy versions of one law of data, for different sigma, unless all but one of
    the weights are zero: a sampler that follows them ends at no law that can be named beforehand.

    Args:
        denoisers: Denoisers of one shape and kind of condition; students copy the first.
        weights: (K, N) weights of the N denoisers at each of `sigmas`.
        sigmas: (K,) rising levels; between them weights are linear in log sigma, outside constant.

    Raises:
        InstilError: The denoisers do not fit together.
    """

    def __init__(
        self,
        denoisers: Sequence[Denoiser],
        weights: Sequence[Sequence[float]],
        sigmas: Sequence[float] = (1.0,),
    ) -> None:
        first = denoisers[0]
        super().__init__(first)
        for other in denoisers[1:]:
            for name in ("shape", "classes", "text"):
                one, two = getattr(first, name), getattr(other, name)
                if one != two:
                    raise InstilError(f"blend: instructors differ in {name}, {one} and {two}")
        if any(len(row) != len(denoisers) for row in weights) or len(weights) != len(sigmas):
            raise InstilError(
                f"blend.weights: expected {len(sigmas)} row(s), one per sigma, of "
                f"{len(denoisers)} weights, one per instructor"
            )
        if list(sigmas) != sorted(set(sigmas)):
            raise InstilError(f"blend.sigmas: {list(sigmas)} must rise")
        self.others = torch.nn.ModuleList(denoisers[1:])
        self.evaluations = sum(each.evaluations for each in denoisers)
        self.sigma_min = max(each.sigma_min for each in denoisers)
        self.sigma_max = min(each.sigma_max for each in denoisers)
        if self.sigma_min >= self.sigma_max:
            raise InstilError("blend: the instructors' ranges of sigma do not meet")
        self.register_buffer("knots", torch.tensor(sigmas).log(), persistent=False)
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        weights = self.weights_at(sigma)
        result = noisy
        for number, each in enumerate((self.first, *self.others)):
            apart = each(noisy, sigma, condition) - noisy
            result = result + expand(weights[:, number], noisy) * apart
        return result

    def weights_at(self, sigma: Tensor) -> Tensor:
        """(B, N) weights at levels (B,)."""
        level, count = sigma.log(), len(self.knots)
        if count == 1:
            return self.weights.to(sigma.dtype).expand(len(sigma), -1)
        upper = torch.searchsorted(self.knots.to(level.dtype), level).clamp(1, count - 1)
        below, above = self.knots[upper - 1], self.knots[upper]
        fraction = ((level - below) / (above - below)).clamp(0, 1)
        return torch.lerp(
            self.weights[upper - 1].to(sigma.dtype),
            self.weights[upper].to(sigma.dtype),
            fraction[:, None],
        )
