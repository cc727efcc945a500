"""A divergence of one's own, used from `recipe.yaml` beside it: `instil distill recipe.yaml`."""

from torch import Tensor

from instil import Divergence


class Levelled(Divergence):
    """The gap of Diff-Instruct, each sample's divided by its own length to some power.

    With power 0 it is IKL; with power 1 every sample moves equally far, however wrong it is.

    Attributes:
        power: Exponent of the length that the gap is divided by.
    """

    jacobian = False  # no gradient runs through the networks, as in IKL and DMD
    power: float = 0.5

    def __call__(
        self, sample: Tensor, sigma: Tensor, instructor_denoised: Tensor, fake_denoised: Tensor
    ) -> Tensor:
        gap = (fake_denoised - instructor_denoised).flatten(1)
        length = gap.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        gradient = gap / length**self.power
        return (sample.flatten(1) * gradient.detach()).sum(1)
