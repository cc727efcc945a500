"""Up to which noise level a model is worth running: a certificate without constants nobody knows.

A model D runs the reverse SDE from sigma = T down to e, started at v_T: the law v, a reference such
as a Gaussian, under noise T. Up to a constant that depends on neither T nor D (nats per sample),

    (1)  KL(p_e || generated_e) <= J(T) = integral from e to T of mse_D u^-3 du
                                        + integral from T to infinity of mse_v u^-3 du
    (2)  J(T) - J(e) = integral from e to T of (mse_D - mse_v) u^-3 du

so J is least where D's loss on samples it was not trained on stops beating the denoiser of the
reference, which is known in closed form. (1) adds identities (2) and (4) of `eval.curves`. One
model serves every T. J is flat near its minimum: the number to use is the smallest T whose J is
within a tolerance of it. J is a bound: the T of its minimum need not be that of the divergence.

The reference `gaussian` has the moments of the training samples; `zero` is an atom, so that v_T is
N(0, T^2), the prior of variance-exploding models; `standard` is N(0, I), whose noisy version is,
scaled, the prior N(0, I) of variance-preserving ones at the time integral of beta = log(1 + T^2).

Source:
    The question is that of Chen, Zhu and Shkurti, "Generalization in VAE and Diffusion Models",
    arXiv 2506.00849. The certificate is derived here; a bound of their shape is in
    `eval.horizon.bound`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eval.cross_fitting import Losses
from eval.curves import Estimate, LossCurve, contributions, loss_gap
from instil.base.draws import Draws
from instil.base.errors import InstilError

RESAMPLES = 200  # of the bootstrap


FINE = 32  # points between two levels, where the integrand is interpolated


@dataclass(frozen=True)
class Horizon:
    """What the certificate says.

    Standard errors are of the samples it was measured on, by bootstrap; they do not know how
    another training would have ended.

    Attributes:
        best: T_opt, where J is least; noise level in data units.
        sufficient: T_eps, the smallest T with J within `tolerance` of its minimum.
        gain: J of the reference alone less the least J, nats per sample; not below 0. A model
            whose gain is clear of 0 is worth distilling.
        crossings: Levels where the model's loss crosses the reference's, by levels where their
            difference is more than two standard errors.
        memorization_gap: Integral over all levels of the model's loss on samples it was not trained
            on less that on samples it was, nats; None where none is known.
        tolerance: Nats.
        sigmas: (K,) the levels.
        nats: (K,) J(T) - J(e).
        stderr: (K,) its standard error.
    """

    best: Estimate
    sufficient: Estimate
    gain: Estimate
    crossings: tuple[float, ...]
    memorization_gap: Estimate | None
    tolerance: float
    sigmas: Tensor
    nats: Tensor
    stderr: Tensor

    @property
    def collapsed(self) -> bool:
        """Whether the reference alone is better than the model started anywhere."""
        return self.best.value == self.sigmas[0].item()

    @property
    def unbounded(self) -> bool:
        """Whether J still falls at the highest level."""
        return self.best.value == self.sigmas[-1].item()


def horizon(losses: Losses, tolerance: float = 0.02, seed: int = 0) -> Horizon:
    """Read the certificate off measured losses.

    Args:
        losses: What `cross_fitted` gives.
        tolerance: Nats per sample that the sufficient T may cost.
        seed: Of the bootstrap.

    Raises:
        InstilError: The tolerance is not positive, or the losses are not of the same samples.
    """
    if not 0 < tolerance < math.inf:
        raise InstilError(f"tolerance {tolerance:g}: expected a positive number of nats")
    gap = loss_gap(losses.model, losses.reference)
    count = len(gap.losses)
    drawn = Draws.of_range(seed, 0, 0, RESAMPLES).integers("bootstrap", count, (count,))
    shares = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    shares.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64))
    found = _minima(gap.mean()[None], gap.sigmas, tolerance)
    spread = _minima(shares @ gap.losses, gap.sigmas, tolerance)
    best, sufficient, gain = (
        Estimate(value.item(), (values - value).std().item())
        for value, values in zip(found, spread, strict=True)
    )
    nats, stderr = torch.zeros(2, len(gap.sigmas), dtype=torch.float64)
    for k, level in enumerate(gap.sigmas.tolist()[1:], start=1):
        upto = Estimate.of(contributions(gap, high=level))
        nats[k], stderr[k] = upto.value, upto.stderr
    memorized = None if losses.seen is None else _difference(losses.model, losses.seen)
    return Horizon(
        best, sufficient, gain, crossings(gap), memorized, tolerance, gap.sigmas, nats, stderr
    )


def _difference(unseen: LossCurve, seen: LossCurve) -> Estimate:
    """The integral of one curve less that of the other, by pairs where the samples are the same."""
    if unseen.drawn == seen.drawn:
        return Estimate.of(contributions(loss_gap(unseen, seen)))
    one, two = Estimate.of(contributions(unseen)), Estimate.of(contributions(seen))
    return Estimate(one.value - two.value, math.hypot(one.stderr, two.stderr))


def _minima(gaps: Tensor, sigmas: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """T_opt, T_eps and the gain, each (B,), of mean gaps (B, K)."""
    size = (len(sigmas) - 1) * FINE + 1
    position, integrand = (
        interpolate(each[:, None], size, mode="linear", align_corners=True)[:, 0]
        for each in (sigmas.log()[None], gaps / sigmas**2)
    )
    steps = position.diff() * (integrand[:, 1:] + integrand[:, :-1]) / 2
    nats = torch.cat([torch.zeros(len(gaps), 1).double(), steps.cumsum(1)], dim=1)
    least, where = nats.min(1)
    first = (nats <= least[:, None] + tolerance).double().argmax(1)
    levels = position[0].exp()
    levels[0], levels[-1] = sigmas[0], sigmas[-1]
    return levels[where], levels[first], 0 - least


def crossings(gap: LossCurve) -> tuple[float, ...]:
    """Noise levels where a mean gap changes sign, between levels where it is clear of zero."""
    integrand, noise = gap.mean() / gap.sigmas**2, 2 * gap.stderr() / gap.sigmas**2
    clear = (integrand.abs() > noise).nonzero()[:, 0]
    x, y = gap.sigmas[clear].log(), integrand[clear]
    turns = (y[1:] * y[:-1] < 0).nonzero()[:, 0]
    share = y[turns] / (y[turns] - y[turns + 1])
    return tuple((x[turns] + share * (x[turns + 1] - x[turns])).exp().tolist())
