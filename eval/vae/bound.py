"""A generalisation bound of a variational autoencoder."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eval.curves import (
    Estimate,
)
from eval.image_sets import check_samples
from instil.base.draws import Draws
from instil.base.errors import InstilError


@dataclass(frozen=True)
class VAEBound:
    """(2), term by term, and its left side measured directly.

    Attributes:
        reconstruction: Loss on training samples through their own codes.
        encoder: The term of the codes.
        generator: The term of the decoder.
        direct: The left side: loss of held-out samples against samples of the prior.
    """

    reconstruction: Estimate
    encoder: Estimate
    generator: float
    direct: Estimate

    @property
    def total(self) -> float:
        """The right side of (2)."""
        return self.reconstruction.value + self.encoder.value + self.generator

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than that the loss is at most 1."""
        return self.total >= 1


def check_noise(weight_noise: float) -> None:
    """Refuse noise of decoders that is none.

    Raises:
        InstilError: It is not positive.
    """
    if not 0 < weight_noise < math.inf:
        raise InstilError(f"weight noise {weight_noise:g}: expected a positive number")


def gaussian_code_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) of every sample, (N,), from (N, …) of independent features."""
    each = std**2 + mean**2 - 1 - 2 * std.log()
    return 0.5 * each.flatten(1).sum(1)


@torch.no_grad()
def vae_bound(
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    decoder: nn.Module,
    initial: Mapping[str, Tensor],
    samples: Tensor,
    held_out: Tensor,
    *,
    weight_noise: float,
    subgaussian: float = 0.5,
    draws: int = 8,
    seed: int = 0,
    count: int | None = None,
    batch: int = 256,
) -> VAEBound:
    """(2) for the mean squared error of images in [0, 1] and a decoder with noise on its weights.

    The decoder is N(w, s^2 I) around its trained weights w; against the prior N(w_0, s^2 I) around
    the initial ones, which saw no sample, I(X; G) <= |w - w_0|^2/(2 s^2).

    Args:
        encode: Mean and standard deviation of the code, (N, …) each.
        decoder: From codes to images in [0, 1], beyond which they are clamped.
        initial: Its parameters before training, by name.
        samples: (m, *shape) in [0, 1], what the VAE was trained on.
        held_out: (N, *shape), others.
        weight_noise: s, above 0.
        subgaussian: R; 1/2 is right for every loss between 0 and 1.
        draws: Decoders and codes per sample.
        seed: Of all noise.
        count: m, where `samples` are only some of them; None where they are all.
        batch: Images at once.

    Raises:
        InstilError: The noise is not positive, or samples leave [0, 1].
        ValueError: `initial` has other parameters than the decoder.
    """
    check_noise(weight_noise)
    for each in (samples, held_out):
        check_samples(each)
        if each.min() < 0 or each.max() > 1:
            raise InstilError(
                f"images from {each.min():g} to {each.max():g}: expected values in [0, 1], on "
                "which the loss is bounded"
            )
    weights = dict(decoder.named_parameters())
    if weights.keys() != initial.keys():
        raise ValueError("initial: expected the decoder's own parameters, by name")
    moved = sum((weights[n] - initial[n]).double().square().sum().item() for n in weights)
    information = moved / (2 * weight_noise**2)
    device = next(iter(weights.values())).device
    coded = [encode(some.to(device)) for some in samples.split(batch)]
    mean, std = (torch.cat(parts) for parts in zip(*coded, strict=True))
    kl = gaussian_code_kl(mean, std).double().cpu()
    rebuilt, direct = torch.zeros(len(samples)), torch.zeros(len(held_out))
    for draw in range(draws):
        shaken = {
            name: weight
            + weight_noise
            * Draws.of_range(seed, draw, 0, 1, device)
            .normal(name, (weight.numel(),), weight.dtype)
            .view_as(weight)
            for name, weight in weights.items()
        }

        def loss(images: Tensor, codes: Tensor, given: Mapping[str, Tensor] = shaken) -> Tensor:
            parts = []
            for some, code in zip(images.split(batch), codes.split(batch), strict=True):
                made = functional_call(decoder, dict(given), (code,)).clamp(0, 1)
                parts.append((made - some.to(device)).square().flatten(1).mean(1).cpu())
            return torch.cat(parts)

        shape = tuple(mean.shape[1:])
        noise = Draws.of_range(seed, draw, 0, len(mean), device).normal("code", shape, mean.dtype)
        rebuilt += loss(samples, mean + std * noise) / draws
        others = Draws.of_range(seed, draw, 0, len(held_out), device)
        direct += loss(held_out, others.normal("prior", shape, mean.dtype)) / draws
    scale = math.sqrt(2) * subgaussian
    return VAEBound(
        Estimate.of(rebuilt),
        Estimate.of(scale * kl.sqrt()),
        scale * math.sqrt(information / (count or len(samples))),
        Estimate.of(direct),
    )
