"""What the student minimises: divergences between its law and the instructor's, level by level.

Let x = G(z) be the student's sample, x_s = x + s n its noisy version, T = D_instructor(x_s, s) and
F = D_fake(x_s, s), where the fake score tracks the law of x. Scores are (D - x_s) / s**2, so the
gap between student and instructor is (F - T) / s**2. <a, b> sums a product over the axes of a
sample, |a| is a mean absolute value over them, and sg stops gradients.

    IKL   Integral Kullback-Leibler divergence, the integral of w(s) KL(student_s || instructor_s):
          d/dx = w(s) (F - T) / s**2                                                            (1)
          With w(s) = s**2, the weight of the authors' code, d/dx = F - T. The divergence is finite
          for disjoint supports only if the integral of w(s) / s over small s**2 is finite.
    DMD   The same gap, normalised by how far the instructor moves the sample:
          d/dx = (F - T) / |x - T|,   |x - T| at least 1e-5                                     (2)
    SiD   Score identity distillation, a Fisher divergence written without the student's score:
          L = <T - F, (T - x) - alpha (T - F)> / sg|x - T|,   |x - T| at least 1e-5             (3)
          with gradients through T and F into x, where IKL and DMD have none.
    SIM   Score implicit matching: the same identity for any distance d of the two scores,
          L = <d'(T - F), F - x>,   d(e) = sqrt(<e, e> + c**2) - c                              (4)
          again with gradients through T and F. With d(e) = <e, e> / 2 it is (3) for alpha = 1
          without the normalisation. The authors' training code is not public: distance and units
          (denoisers, not scores; c for each root of a sample's size) are a reconstruction.

A divergence is a pure function of tensors. It calls no network, so forwards can be shared and a
test can feed it the tensors of another implementation.

Source:
    (1) Luo et al. 2023, arXiv 2305.18455. (2) Yin et al. 2023, arXiv 2311.18828.
    (3) Zhou et al. 2024, arXiv 2404.04057; alpha is 1.2 in its best results.
    (4) Luo et al. 2024, arXiv 2410.16794.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from instil.base.config import Choice, OneOf
from instil.base.shapes import expand

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-5  # |x - T| in (2) and (3), as in SiD's code; DMD's turns what is infinite into 0


class Divergence(Choice, ABC):
    """The contract of every divergence.

    Attributes:
        jacobian: Whether gradients reach the sample through both networks as well.
    """

    jacobian: ClassVar[bool]

    @abstractmethod
    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        """A loss whose gradient with respect to `sample` is the divergence's.

        Args:
            sample: (B, *shape), x.
            sigma: (B,), s, data units.
            instructor_denoised: (B, *shape), T.
            fake_denoised: (B, *shape), F.

        Returns:
            (B,). Where `jacobian` is False it is half the squared gradient, a surrogate: the value
            of the divergence itself is unknown.
        """


class IKL(Divergence):
    """Integral KL divergence, equation (1) with w(s) = s**power.

    Attributes:
        power: Power of sigma in the weight; 2 is the weight of the authors' code, 0 none.
    """

    jacobian: ClassVar[bool] = False
    kind: Literal["ikl"] = "ikl"
    power: float = 2.0

    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        weight = expand(sigma, sample) ** (self.power - 2)
        return _surrogate(sample, weight * (fake_denoised - instructor_denoised))


class DMD(Divergence):
    """Distribution matching distillation, equation (2)."""

    jacobian: ClassVar[bool] = False
    kind: Literal["dmd"] = "dmd"

    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        scale = _distance(sample, instructor_denoised)
        return _surrogate(sample, (fake_denoised - instructor_denoised) / scale)


class SiD(Divergence):
    """Score identity distillation, equation (3).

    Attributes:
        alpha: Factor of the squared gap; 1.2 in the paper's best results.
    """

    jacobian: ClassVar[bool] = True
    kind: Literal["sid"] = "sid"
    alpha: Annotated[float, Field(ge=0, le=2)] = 1.0

    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        gap = instructor_denoised - fake_denoised
        product = gap * ((instructor_denoised - sample) - self.alpha * gap)
        return (product / _distance(sample, instructor_denoised)).flatten(1).sum(1)


class SIM(Divergence):
    """Score implicit matching, equation (4).

    Attributes:
        c: Scale of the distance: gaps far below c count by their size, gaps above by direction.
    """

    jacobian: ClassVar[bool] = True
    kind: Literal["sim"] = "sim"
    c: PositiveFloat = 0.1

    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        gap = (instructor_denoised - fake_denoised).flatten(1)
        size = (gap.square().sum(1) + self.c**2 * gap.shape[1]).sqrt()
        return (gap * (fake_denoised - sample).flatten(1)).sum(1) / size


Divergences = Annotated[Divergence, OneOf(IKL, DMD, SiD, SIM)]


def _distance(sample: Tensor, denoised: Tensor) -> Tensor:
    """Mean absolute difference per sample, at least `SMALLEST`: (B, 1, …, 1), no gradient."""
    distance = (sample - denoised).detach().abs().flatten(1).mean(1)
    return expand(distance.clamp(min=SMALLEST), sample)


def _surrogate(sample: Tensor, gradient: Tensor) -> Tensor:
    """(B,) with this gradient at `sample` and half its squared norm as value."""
    target = (sample - gradient).detach()
    return 0.5 * (sample - target).square().flatten(1).sum(1)
