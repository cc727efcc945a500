"""A generalisation bound of variational autoencoders.

With code q(z|x), prior N(0, I), a decoder G trained on m samples X_i, and a loss between 0 and 1:

    E loss(x, G(z)) <= mean_i E loss(X_i, G(z_i)) + mean_i sqrt(KL(q(.|X_i) || N(0, I)) / 2)
                       + sqrt(I(X; G) / (2 m)),             x held out, z from the prior

by Donsker and Varadhan per sample and the bound by individual information of Bu, Zou and
Veeravalli 2020. It is vacuous as a rule, that is above 1; its left side is measured beside it.

Source:
    After theorem 4.1 of Chen, Zhu and Shkurti, "Generalization in VAE and Diffusion Models",
    arXiv 2506.00849.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eval.curves import Estimate
from eval.image_sets import check_samples
from instil.base.draws import Draws
from instil.base.errors import InstilError

SCALE = math.sqrt(2) * 0.5  # sqrt(2) R; a loss between 0 and 1 is sub-Gaussian with R = 1/2


@dataclass(frozen=True)
class VAEBound:
    """The bound, term by term, and its left side measured directly.

    Attributes:
        reconstruction: Loss on training samples through their own codes.
        encoder: Term of the codes.
        generator: Term of the decoder.
        direct: Left side: loss of held-out samples against samples of the prior.
    """

    reconstruction: Estimate
    encoder: Estimate
    generator: float
    direct: Estimate

    @property
    def total(self) -> float:
        """The right side."""
        return self.reconstruction.value + self.encoder.value + self.generator

    @property
    def vacuous(self) -> bool:
        """Whether the bound only says that the loss is at most 1."""
        return self.total >= 1


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
    draws: int = 8,
    seed: int = 0,
    count: int | None = None,
    batch: int = 256,
) -> VAEBound:
    """The bound for the mean squared error of images in [0, 1] and a decoder with noisy weights.

    The decoder is N(w, s^2 I) around its trained weights w. Against the prior N(w_0, s^2 I) around
    the initial ones, which saw no sample, I(X; G) <= |w - w_0|^2/(2 s^2).

    Args:
        encode: Mean and standard deviation of the code, (N, …) each.
        decoder: From codes to images in [0, 1], beyond which they are clamped.
        initial: The decoder's parameters before training, by name.
        samples: (m, *shape) in [0, 1], training samples of the VAE.
        held_out: (N, *shape), other samples.
        weight_noise: s, above 0.
        draws: Decoders and codes per sample.
        seed: Seed of all noise.
        count: m, where `samples` are only some of the training samples.
        batch: Images at once.

    Raises:
        InstilError: The noise is not positive, or samples leave [0, 1].
        ValueError: `initial` has other parameters than the decoder.
    """
    if not 0 < weight_noise < math.inf:
        raise InstilError(f"weight noise {weight_noise:g}: expected a positive number")
    for each in (samples, held_out):
        _check_range(each)
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
    shape = tuple(mean.shape[1:])
    for draw in range(draws):
        noisy = _noisy_weights(weights, weight_noise, Draws.of_range(seed, draw, 0, 1, device))
        noise = Draws.of_range(seed, draw, 0, len(mean), device).normal("code", shape, mean.dtype)
        rebuilt += _losses(decoder, noisy, samples, mean + std * noise, batch) / draws
        others = Draws.of_range(seed, draw, 0, len(held_out), device)
        prior = others.normal("prior", shape, mean.dtype)
        direct += _losses(decoder, noisy, held_out, prior, batch) / draws
    return VAEBound(
        Estimate.of(rebuilt),
        Estimate.of(SCALE * kl.sqrt()),
        SCALE * math.sqrt(information / (count or len(samples))),
        Estimate.of(direct),
    )


def _check_range(images: Tensor) -> None:
    check_samples(images)
    if images.min() < 0 or images.max() > 1:
        raise InstilError(
            f"images from {images.min():g} to {images.max():g}: expected values in [0, 1], on "
            "which the loss is bounded"
        )


def _noisy_weights(weights: Mapping[str, Tensor], noise: float, draws: Draws) -> dict[str, Tensor]:
    return {
        name: weight + noise * draws.normal(name, (weight.numel(),), weight.dtype).view_as(weight)
        for name, weight in weights.items()
    }


def _losses(
    decoder: nn.Module, weights: dict[str, Tensor], images: Tensor, codes: Tensor, batch: int
) -> Tensor:
    """(N,) mean squared error of every image against the decoder's image of its code."""
    parts = []
    for some, code in zip(images.split(batch), codes.split(batch), strict=True):
        made = functional_call(decoder, weights, (code,)).clamp(0, 1)
        parts.append((made - some.to(code.device)).square().flatten(1).mean(1).cpu())
    return torch.cat(parts)
