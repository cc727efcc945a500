"""What keeps an instructor trained on few images from learning them by heart.

    reference path   w(sigma) |D(x) - D_v(x)|^2     v: the Gaussian with the images' moments
    score gradient   sigma^4 |ds/dx|_F^2 = |dD/dx - I|_F^2

The first bounds what the generator can know about its training images: integrated with the weight
sigma^-3 d sigma it is the path KL from its reverse SDE to that of the Gaussian, in nats. The second
is on the score, in a weight without units; the same on the denoiser's own Jacobian would ask for
what a memorising denoiser has, none.

Source:
    Both after Chen, Zhu and Shkurti, arXiv 2506.00849, who propose a penalty on the score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import NonNegativeFloat

from instil.base.config import Choice, OneOf

if TYPE_CHECKING:
    from torch import Tensor

    from instil.base.draws import Draws
    from instructors.denoiser import Denoiser

    # denoised, noisy, sigma, weight of the denoising loss, draws -> (B,)
    Term = Callable[[Tensor, Tensor, Tensor, Tensor, Draws], Tensor]


class DenoisingPenalty(Choice, ABC):
    """Base of the penalties added to the denoising loss.

    Attributes:
        kappa: Weight of the penalty.
    """

    kappa: NonNegativeFloat

    @abstractmethod
    def term(self, images: Tensor) -> Term:
        """The penalty of a batch, given all training images (N, *shape) in [-1, 1]."""

    def forward(self, noisy: Tensor) -> AbstractContextManager[object]:
        """What surrounds the network's evaluation at `noisy`."""
        return nullcontext()


class ReferencePath(DenoisingPenalty):
    """The first penalty, with the weight of the denoising loss."""

    kind: Literal["reference_path"] = "reference_path"
    kappa: NonNegativeFloat = 0.1

    def term(self, images: Tensor) -> Term:
        from instructors.analytic import fit_gaussian

        law = fit_gaussian(images.cpu()).to(images)
        return lambda denoised, noisy, sigma, weight, draws: (
            self.kappa * reference_path(denoised, noisy, sigma, weight, law)
        )


class ScoreGradient(DenoisingPenalty):
    """The second penalty; it costs a second backward pass through the network."""

    kind: Literal["score_gradient"] = "score_gradient"
    kappa: NonNegativeFloat = 0.03

    def term(self, images: Tensor) -> Term:
        shape = tuple(images.shape[1:])
        return lambda denoised, noisy, sigma, weight, draws: (
            self.kappa * score_gradient(denoised, noisy, draws.normal("probe", shape))
        )

    def forward(self, noisy: Tensor) -> AbstractContextManager[object]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        noisy.requires_grad_()
        return sdpa_kernel(SDPBackend.MATH)  # the only attention that is differentiable twice


Penalty = Annotated[DenoisingPenalty, OneOf(ReferencePath, ScoreGradient)]


def reference_path(
    denoised: Tensor, noisy: Tensor, sigma: Tensor, weight: Tensor, reference: Denoiser
) -> Tensor:
    """The first penalty, (B,).

    Args:
        denoised: (B, *shape), D(noisy, sigma).
        noisy: (B, *shape).
        sigma: (B,).
        weight: (B,), w.
        reference: v, exact.
    """
    from instructors.training.denoising import denoising_loss

    return denoising_loss(denoised, reference(noisy, sigma), weight)


def score_gradient(denoised: Tensor, noisy: Tensor, probe: Tensor) -> Tensor:
    """The second penalty by one random direction, (B,); unbiased for standard normal probes.

    Args:
        denoised: (B, *shape), computed from `noisy`, twice differentiable.
        noisy: (B, *shape), a leaf that requires gradients.
        probe: (B, *shape).

    Source:
        Hutchinson 1989; a transposed Jacobian has the same Frobenius norm.
    """
    import torch

    (pulled,) = torch.autograd.grad(denoised, noisy, probe, create_graph=True)
    return (pulled - probe).square().flatten(1).sum(1)
