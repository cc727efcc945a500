"""The paper's bound of a diffusion over its length, term by term.

With m training samples X_i, codes E_T(X_i) = N(X_i, T^2 I), a prior v_T as in
`eval.horizon.certificate`, a generator trained on the samples, and a loss that is R-sub-Gaussian:

    B(T) = - I_m(T) + sqrt(2) R mean_i sqrt(KL(E_T(X_i) || v_T))
           + sqrt(2) R sqrt(I_gen(T)/m) + integral from e to T of (mse_D - mse_memory) u^-3 du

I_m is what a code tells about which sample it is of. I_gen bounds what the generator knows about
the samples, by the path KL from its reverse SDE to that of the reference. mse_memory is the loss of
the empirical law's denoiser, so that the last term is explicit score matching, in nats. R is not
known and the minimum of B moves with it; the bound is not tight.

Source:
    The shape of B: Chen, Zhu and Shkurti, "Generalization in VAE and Diffusion Models", arXiv
    2506.00849, as far as its public parts show it, in VE coordinates.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.answer import Rows
from eval.cross_fitting import reference_law
from eval.curves import (
    LossCurve,
    check_sigmas,
    contributions,
    cross_entropy,
    denoising_loss_curve,
    loss_gap,
    noised_losses,
    square,
)
from eval.horizon.answer import Measured
from eval.image_sets import check_samples, digest, some
from eval.questions import Horizon
from instil.base.data import floats
from instil.base.draws import Draws
from instructors.analytic import Mixture
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser

RANGE = (0.1, 100.0)  # of R, over which a minimum must not move


def encoder_kl(samples: Tensor, sigma: float, reference: Mixture) -> Tensor:
    """KL(N(x, sigma^2 I) || v_sigma) of every sample, (N,) nats.

    Args:
        samples: (N, *shape).
        sigma: T.
        reference: v, of one component; N(0, I) gives the code of a variance-preserving model.
    """
    size = samples[0].numel()
    entropy = size / 2 * (1 + 2 * math.log(sigma))  # both without d/2 log(2 pi)
    return cross_entropy(reference, samples, [sigma])[:, 0] - entropy


def code_information(
    samples: Tensor, sigma: float, *, noise_draws: int = 16, seed: int = 0, batch: int = 256
) -> Tensor:
    """What the code of each sample tells about which sample it is of, nats.

    Unbiased for these samples, with all of them as centres; the mean is between 0 and log N.

    Args:
        samples: (N, *shape); costs N^2 noise_draws distances.
        sigma: T.
        noise_draws: Codes per sample.
        seed: Of the noise.
        batch: Samples at once.

    Returns:
        (N,) whose mean is the mutual information I_m.
    """
    flat = floats(samples).flatten(1).double()
    found = torch.zeros(len(flat), dtype=torch.float64)
    for start in range(0, len(flat), batch):
        own = flat[start : start + batch]
        far = torch.cdist(own, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
        for draw in range(noise_draws):
            draws = Draws.of_range(seed, draw, start, len(own))
            noise = draws.normal("code", own.shape[1:], torch.float64)
            tilt = (noise * own).sum(1, keepdim=True) - noise @ flat.mT
            sums = (-far / (2 * sigma**2) - tilt / sigma).logsumexp(1)
            found[start : start + batch] += (math.log(len(flat)) - sums) / noise_draws
    return found


class Memory(Denoiser):
    """The exact denoiser of the uniform law on samples, on those of one label where labels count.

    `instructors.analytic.empirical` by distances alone, which fits thousands of images.

    Args:
        samples: (N, *shape).
        labels: (N,) int64, or None.
        classes: Number of labels.
    """

    def __init__(self, samples: Tensor, labels: Tensor | None = None, classes: int = 0) -> None:
        super().__init__()
        self.shape, self.classes = tuple(samples.shape[1:]), classes
        self.sigma_min, self.sigma_max = 0.0, math.inf
        self.samples, self.labels = floats(samples).flatten(1).double(), labels

    def denoise(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        centres = self.samples.to(noisy.device)
        far = torch.cdist(
            noisy.flatten(1).double(), centres, compute_mode="donot_use_mm_for_euclid_dist"
        )
        closeness = -(far**2) / (2 * sigma.double()[:, None] ** 2)
        if self.labels is not None and self.classes:
            others = condition["label"][:, None] != self.labels.to(noisy.device)
            closeness = closeness.masked_fill(others, -math.inf)
        return (closeness.softmax(1) @ centres).view_as(noisy).to(noisy)


@torch.no_grad()
def path_curve(
    denoiser: Denoiser,
    samples: Tensor,
    sigmas: Tensor,
    reference: Denoiser,
    *,
    condition: Condition = UNCONDITIONAL,
    noise_draws: int = 4,
    seed: int = 0,
    batch: int = 256,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> LossCurve:
    """|D - D_v|^2 at noised samples, whose integral (`eval.curves`) is the path KL.

    The path KL is an expectation over what the generator makes on its way; noised training samples
    are a cheaper stand-in, equal to it where the model is right.

    Args:
        denoiser: On `device`, like `reference`.
        samples: (N, *shape).
        sigmas: (K,).
        reference: Denoiser of v.
        condition: Condition of all N samples.
        noise_draws: Noise draws per sample and level.
        seed: Seed of the noise.
        batch: Samples at once.
        device: Device of both denoisers.
        label: Name of a progress bar.
    """
    levels = check_sigmas(sigmas)

    def apart(clean: Tensor, noisy: Tensor, sigma: Tensor, given: Condition) -> Tensor:
        return square(denoiser(noisy, sigma, given), reference(noisy, sigma))

    losses = noised_losses(
        apart, samples, levels, condition, noise_draws, seed, batch, device, label
    )
    return LossCurve(levels, losses, f"{digest(samples)}, seed {seed}, path")


@dataclass(frozen=True)
class BoundCurve:
    """The terms of B over T, all in nats.

    Attributes:
        sigmas: (K,) T.
        information: (K,) I_m.
        encoder: (K,) mean of sqrt(KL).
        generator: (K,) bound of I_gen, on noised training samples.
        score: (K,) the last term.
        count: m.
    """

    sigmas: Tensor
    information: Tensor
    encoder: Tensor
    generator: Tensor
    score: Tensor
    count: int

    def at(self, subgaussian: float) -> Tensor:
        """(K,) B(T) for a constant R."""
        scale = math.sqrt(2) * subgaussian
        generator = (self.generator / self.count).sqrt()
        return -self.information + scale * (self.encoder + generator) + self.score

    def best(self, subgaussian: float) -> float:
        """T of the least B."""
        return self.sigmas[self.at(subgaussian).argmin()].item()

    def range(self) -> tuple[float, float]:
        """The least and the largest minimiser over R in [0.1, 100]."""
        low, high = (math.log(end) for end in RANGE)
        found = [self.best(r) for r in torch.linspace(low, high, 61).exp().tolist()]
        return min(found), max(found)

    @property
    def identified(self) -> bool:
        """Whether the minimiser is one and the same for every R in [0.1, 100]."""
        low, high = self.range()
        return low == high


def generalization_bound(
    denoiser: Denoiser,
    samples: Tensor,
    sigmas: Tensor,
    reference: Mixture,
    *,
    labels: Tensor | None = None,
    noise_draws: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> BoundCurve:
    """The terms of B at every level but the first, where the path ends.

    Args:
        denoiser: On `device`; where it has classes, the score term is conditional, the rest not.
        samples: (m, *shape), the denoiser's training samples.
        sigmas: (K + 1,), the lowest is e.
        reference: v.
        labels: (m,) where the denoiser has classes.
        noise_draws: Noise draws per sample and level.
        seed: Seed of the noise.
        device: Device of the denoiser.
        label: Name of the progress bars.

    Raises:
        InstilError: As `denoising_loss_curve`.
    """
    check_samples(samples)
    options: dict[str, Any] = {
        "condition": UNCONDITIONAL if labels is None else Condition(label=labels),
        "noise_draws": noise_draws,
        "seed": seed,
        "device": device,
        "label": label,
    }
    memory = Memory(samples, labels, denoiser.classes)
    losses = [denoising_loss_curve(each, samples, sigmas, **options) for each in (denoiser, memory)]
    path = path_curve(denoiser, samples, sigmas, reference.to(device), **options)
    reference.to("cpu")
    score, tops = loss_gap(*losses), path.sigmas.tolist()[1:]
    terms = [
        [
            code_information(samples, top, noise_draws=noise_draws, seed=seed).mean(),
            encoder_kl(samples, top, reference).sqrt().mean(),
            contributions(path, high=top).mean(),
            contributions(score, high=top).mean(),
        ]
        for top in tops
    ]
    return BoundCurve(path.sigmas[1:], *torch.tensor(terms).double().unbind(1), count=len(samples))


def bound_of(measured: Measured, question: Horizon) -> tuple[Rows, dict[str, Any]]:
    """The bound of an instructor on its training images, as table rows and facts.

    Args:
        measured: An instructor's horizon, its training images known.
        question: The question it answers.
    """
    if measured.instructor is None or measured.training is None:
        raise ValueError("measured: expected an instructor whose training images are known")
    denoiser = measured.instructor.denoiser
    seen = some(measured.training, question.samples, question.seed)
    curve = generalization_bound(
        denoiser,
        seen.pixels,
        measured.horizon.sigmas,
        reference_law(question.reference, seen.pixels),
        labels=seen.labels if denoiser.classes else None,
        noise_draws=question.draws,
        seed=question.seed,
        device=next(denoiser.parameters()).device,
        label="training images",
    )
    low, high = curve.range()
    constants = sorted({0.1, 1.0, 10.0, 100.0, question.subgaussian or 1.0})
    rows = [
        {
            "figure": f"bound at R = {r:g}: least at sigma {curve.best(r):.3g}",
            "value ± standard error": f"{curve.at(r).min():.4g}",
        }
        for r in constants
    ]
    text = f"{low:.3g}" if curve.identified else f"not identified: {low:.3g} to {high:.3g}"
    rows.append({"figure": "its minimum for R in [0.1, 100]", "value ± standard error": text})
    facts: dict[str, Any] = {
        "samples": curve.count,
        "generator information": "on noised training images",
        "identified": curve.identified,
        "minimum": {f"{r:g}": curve.best(r) for r in constants},
        "range": [low, high],
    }
    for name in ("sigmas", "information", "encoder", "generator", "score"):
        facts[name] = getattr(curve, name).tolist()
    return rows, facts
