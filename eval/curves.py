"""The one measure under all diagnostics: a difference of two denoising losses, in nats.

Data x ~ p have the exact denoiser D*; any other D has the loss mse_D(s) = E|x - D(x + s n, s)|^2,
which nothing but forward passes on held-out data measures. Four identities make it a measure
(q, v: other data laws, with denoisers D_q and D_v; p_s: the law of x + s n):

    (1)  mse_D - mse_D* = E|D - D*|^2 = s^4 (squared score error of D)
    (2)  KL(p_s || q_s) = integral over u > s of (mse_Dq - mse_D*) u^-3 du
    (3)  E_x KL(N(x, s^2 I) || v_s) = integral over u > s of mse_Dv u^-3 du
    (4)  KL(p_e || generated_e) <= KL(p_T || v_T) + integral from e to T of (mse_D - mse_D*) u^-3 du

(4) is for the reverse SDE (not the ODE) with any D, started at v_T. So a gap of two loss curves,
integrated with the weight u^-3 du, is a number of nats per sample. Of denoisers that were trained,
the gap is net of what each lost by being estimated: right for a decision, not for a law.

Source:
    (1) is Pythagoras; (2) integrates de Bruijn's identity, in this form Guo, Shamai and Verdu 2005,
    arXiv cs/0412108, and Verdu 2010; (4) is Girsanov's theorem with the chain rule of KL.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.image_sets import check_samples, digest
from instil.base.data import floats
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs.monitor import track
from instructors.analytic import Mixture
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser
from instructors.training.denoising import denoising_loss

EXACT = "noise averaged exactly"


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its standard error."""

    value: float
    stderr: float

    @classmethod
    def of(cls, contributions: Tensor) -> "Estimate":
        """Of one number per sample, (N,)."""
        error = contributions.double().std() / math.sqrt(len(contributions))
        return cls(contributions.double().mean().item(), error.item())

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors away from zero."""
        return abs(self.value) > 2 * self.stderr

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.stderr:.1g}"


@dataclass(frozen=True)
class LossCurve:
    """Denoising losses of each sample at each noise level, or differences of such.

    Attributes:
        sigmas: (K,) float64, rising, data units.
        losses: (N, K) float64, squared error summed over the axes of a sample.
        drawn: The samples and the noise the losses are of; differences need the same.
    """

    sigmas: Tensor
    losses: Tensor
    drawn: str

    def mean(self) -> Tensor:
        """(K,) mean over the samples."""
        return self.losses.mean(0)

    def stderr(self) -> Tensor:
        """(K,) standard error of the mean."""
        return self.losses.std(0) / math.sqrt(len(self.losses))


def square(denoised: Tensor, target: Tensor) -> Tensor:
    """(B,) |denoised - target|^2 of tensors (B, *shape), in float64."""
    one = denoised.new_ones(len(denoised), dtype=torch.float64)
    return denoising_loss(denoised.double(), target.double(), one)


@torch.no_grad()
def noised_losses(
    loss: Callable[[Tensor, Tensor, Tensor, Condition], Tensor],
    samples: Tensor,
    levels: Tensor,
    condition: Condition,
    noise_draws: int,
    seed: int,
    batch: int,
    device: torch.device | str,
    label: str | None,
) -> Tensor:
    """A loss of every sample at every level, averaged over draws of the noise.

    The noise is a function of seed, draw, level and the sample's number alone, so that all curves
    of one seed share it.

    Args:
        loss: Samples (B, *shape), the same with noise, sigma (B,) and condition to (B,) float64.
        samples: (N, *shape).
        levels: (K,).
        condition: Of all N samples.
        noise_draws: Noise draws per sample and level.
        seed: Seed of the noise.
        batch: Samples at once.
        device: Device of the loss.
        label: Name of a progress bar on a terminal; None shows none.

    Returns:
        (N, K) float64, on the CPU.
    """
    losses = torch.empty(len(samples), len(levels), dtype=torch.float64)
    for part in track([slice(k, k + batch) for k in range(0, len(samples), batch)], label):
        clean, given = floats(samples[part]).to(device), condition.rows(part).to(device)
        for k, level in enumerate(levels.tolist()):
            sigma = clean.new_full(clean.shape[:1], level)
            total = torch.zeros(len(clean), dtype=torch.float64, device=device)
            for draw in range(noise_draws):
                draws = Draws.of_range(seed, draw, part.start, len(clean), device)
                noise = draws.normal(f"level {k}", tuple(clean.shape[1:]), clean.dtype)
                total += loss(clean, clean + level * noise, sigma, given)
            losses[part, k] = (total / noise_draws).cpu()
    return losses


@torch.no_grad()
def denoising_loss_curve(
    denoiser: Denoiser,
    samples: Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    condition: Condition = UNCONDITIONAL,
    noise_draws: int = 4,
    seed: int = 0,
    batch: int = 256,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> LossCurve:
    """The loss |x - D(x + sigma n, sigma)|^2 of every sample at every noise level.

    The noise is a function of seed, draw, level and the sample's number alone, so that two
    denoisers see the same and a difference of their curves has little variance.

    Args:
        denoiser: On `device`.
        samples: (N, *shape), held out from the denoiser's training; uint8 images become [-1, 1]
            batch by batch, float64 stays float64, everything else is computed in float32.
        sigmas: (K,) rising noise levels, at least two, within the denoiser's range. For an integral
            take 8 per decade or more.
        condition: Condition of all N samples.
        noise_draws: Noise draws per sample and level; costs N * K * noise_draws evaluations.
        seed: Seed of the noise.
        batch: Samples denoised at once.
        device: Device of the denoiser, e.g. that of an `Accelerator`.
        label: Name of a progress bar on a terminal; None shows none.

    Raises:
        InstilError: Levels are not positive and rising or leave the denoiser's range; fewer than
            two samples, or all equal; something is not finite.
        ValueError: The denoiser's output has another shape than its input.
    """
    levels = check_sigmas(sigmas)
    low, high = levels[0].item(), levels[-1].item()
    if low < denoiser.sigma_min * (1 - 1e-6) or high > denoiser.sigma_max * (1 + 1e-6):
        raise InstilError(
            f"noise levels {low:g} to {high:g} leave the denoiser's own range "
            f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]; choose levels inside it"
        )
    check_samples(samples)

    def loss(clean: Tensor, noisy: Tensor, sigma: Tensor, given: Condition) -> Tensor:
        denoised = denoiser(noisy, sigma, given)
        if denoised.shape != clean.shape:
            raise ValueError(
                f"denoiser: made {tuple(denoised.shape)} of {tuple(clean.shape)}; "
                "expected the same shape"
            )
        return square(denoised, clean)

    losses = noised_losses(
        loss, samples, levels, condition, noise_draws, seed, batch, device, label
    )
    if not losses.isfinite().all():
        worst = levels[~losses.isfinite().all(0)][0].item()
        raise InstilError(
            f"denoiser: its output is not finite at sigma {worst:g}; look at its weights"
        )
    return LossCurve(levels, losses, f"{digest(samples)}, seed {seed}, {noise_draws} noise draws")


def gaussian_loss_curve(
    law: Mixture, samples: Tensor, sigmas: Sequence[float] | Tensor
) -> LossCurve:
    """`denoising_loss_curve` of a Gaussian's denoiser with the noise averaged exactly.

    Args:
        law: Of one component, such as `fit_gaussian` makes.
        samples: (N, *shape), as above.
        sigmas: (K,), as above.

    Raises:
        InstilError: As above.
    """
    levels = check_sigmas(sigmas)
    check_samples(samples)
    along, rest, outside = _coordinates(law, samples)
    s = (levels**2)[:, None]
    inside, beyond = law.variances[0] / (law.variances[0] + s), law.tail[0] / (law.tail[0] + s)
    losses = along**2 @ ((1 - inside) ** 2).mT + rest[:, None] * ((1 - beyond) ** 2).mT
    losses = losses + (s * (inside**2).sum(1, keepdim=True) + s * outside * beyond**2).mT
    return LossCurve(levels, losses, f"{digest(samples)}, {EXACT}")


def loss_gap(first: LossCurve, second: LossCurve) -> LossCurve:
    """The first curve minus the second, sample by sample.

    Raises:
        InstilError: They are not of the same samples, levels and noise.
    """
    if first.drawn != second.drawn or not torch.equal(first.sigmas, second.sigmas):
        levels = [f"{len(c.sigmas)} levels to {c.sigmas[-1]:g}" for c in (first, second)]
        raise InstilError(
            f"loss curves of ({first.drawn}; {levels[0]}) and ({second.drawn}; {levels[1]}) cannot "
            "be subtracted; measure both on the same samples, levels, seed and noise draws"
        )
    return LossCurve(first.sigmas, first.losses - second.losses, first.drawn)


def integrate_gap(gap: LossCurve, low: float | None = None, high: float | None = None) -> Estimate:
    """The integral of gap * sigma^-3 d sigma in nats per sample, trapezoid rule on log sigma.

    Args:
        gap: What `loss_gap` gives, or a loss curve itself for identity (3) above.
        low: Lower end; None is the curve's. Between two levels the integrand is interpolated.
        high: Upper end; None is the curve's.

    Raises:
        InstilError: The ends are not in order within the curve's levels.
    """
    return Estimate.of(contributions(gap, low, high))


def contributions(gap: LossCurve, low: float | None = None, high: float | None = None) -> Tensor:
    """(N,) what `integrate_gap` is the mean of: each sample's own integral.

    Raises:
        InstilError: As there.
    """
    first, last = gap.sigmas[0].item(), gap.sigmas[-1].item()
    low, high = first if low is None else low, last if high is None else high
    if not first * (1 - 1e-9) <= low < high <= last * (1 + 1e-9):
        raise InstilError(
            f"the integral from sigma {low:g} to {high:g} leaves the curve, "
            f"which runs from {first:g} to {last:g}"
        )
    position = gap.sigmas.log()
    ends = torch.tensor([low, high], dtype=torch.float64).log().clamp(position[0], position[-1])
    within = position[(position > ends[0]) & (position < ends[1])]
    nodes = torch.cat([ends[:1], within, ends[1:]])
    # hats[i, k]: share of level k in the integrand at node i, by linear interpolation
    right = torch.searchsorted(position, nodes).clamp(1, len(position) - 1)
    share = (nodes - position[right - 1]) / (position[right] - position[right - 1])
    hats = torch.zeros(len(nodes), len(position), dtype=torch.float64)
    hats.scatter_(1, right[:, None], share[:, None])
    hats.scatter_(1, right[:, None] - 1, 1 - share[:, None])
    widths = nodes.diff()
    trapezoid = torch.zeros(len(nodes), dtype=torch.float64)
    trapezoid[:-1] += widths / 2
    trapezoid[1:] += widths / 2
    return gap.losses @ ((trapezoid @ hats) / gap.sigmas**2)


def cross_entropy(law: Mixture, samples: Tensor, sigmas: Sequence[float] | Tensor) -> Tensor:
    """Minus the log-density of x + sigma n under a Gaussian, averaged over n.

    By identity (2), that of one Gaussian less that of another is the gap of their denoisers'
    losses, integrated from sigma to infinity.

    Args:
        law: Of one component; its own noise is added to its variances.
        samples: (N, *shape).
        sigmas: (K,).

    Returns:
        (N, K) nats, without the constant d/2 log(2 pi).
    """
    along, rest, outside = _coordinates(law, samples)
    s = torch.as_tensor(sigmas, dtype=torch.float64)[:, None] ** 2
    inside, beyond = law.variances[0] + s, law.tail[0] + s  # (K, r), (K, 1)
    square = along**2 @ (1 / inside).mT + rest[:, None] / beyond.mT
    volume = inside.log().sum(1) + outside * beyond[:, 0].log()
    return 0.5 * (square + (s / inside).sum(1) + outside * (s / beyond)[:, 0] + volume)


def _coordinates(law: Mixture, samples: Tensor) -> tuple[Tensor, Tensor, int]:
    """A Gaussian's view of samples: along its directions (N, r), squared rest (N,), d - r."""
    if len(law.log_weights) != 1:
        raise ValueError(f"law: expected one Gaussian, got {len(law.log_weights)} components")
    parts = []
    for part in samples.split(1024):  # the float copy of a large image set stays small
        apart = floats(part).flatten(1).double() - law.means[0]
        parts.append((apart @ law.directions[0], apart.square().sum(1)))
    along, square = (torch.cat(each) for each in zip(*parts, strict=True))
    rest = (square - along.square().sum(1)).clamp(min=0)
    return along, rest, law.means.shape[1] - along.shape[1]


def check_sigmas(sigmas: Sequence[float] | Tensor) -> Tensor:
    """The noise levels as (K,) float64.

    Raises:
        InstilError: Fewer than two, or not positive, finite and rising.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    rising = levels.dim() == 1 and len(levels) > 1 and bool((levels.diff() > 0).all())
    if not rising or levels[0] <= 0 or not levels.isfinite().all():
        raise InstilError(
            f"noise levels {levels.tolist()}: expected two or more, positive, finite and rising"
        )
    return levels


def noise_levels(low: float, high: float, per_decade: int = 8) -> Tensor:
    """(K,) float64 levels from `low` to `high`, evenly spaced in log sigma.

    Raises:
        InstilError: They are not positive and in order.
    """
    if not 0 < low < high < math.inf:
        raise InstilError(f"noise levels from {low:g} to {high:g}: expected 0 < lowest < highest")
    count = max(2, math.ceil(per_decade * math.log10(high / low)) + 1)
    levels = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()
    levels[0], levels[-1] = low, high
    return levels
