"""Variational autoencoders, of diffusers or trained here, under a generalisation bound."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.image_sets import check_samples, refuse_shared
from eval.latents.autoencoders import load_codec
from eval.vae.bound import VAEBound, check_noise, gaussian_code_kl, vae_bound
from instil.base import data
from instil.base.draws import Draws
from instil.base.errors import InstilError

SMALL = "mlp"
EPOCHS = 60  # of the small one


@dataclass(frozen=True)
class VAE:
    """What the bound needs to know of one.

    Attributes:
        encode: Images (N, *shape) in [0, 1] to mean and standard deviation of their code.
        decoder: And back.
        initial: The decoder's parameters before training, or others that saw no image.
    """

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decoder: nn.Module
    initial: Mapping[str, Tensor]


class MLP(nn.Module):
    """A small autoencoder of images in [0, 1] with a Gaussian code.

    Args:
        shape: Of an image.
        code: Length of the code.
        width: Of the hidden layers.
    """

    def __init__(self, shape: tuple[int, ...], code: int = 8, width: int = 128) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(size, width), nn.SiLU(), nn.Linear(width, 2 * code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, width),
            nn.SiLU(),
            nn.Linear(width, size),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the code of images (N, *shape)."""
        mean, log_std = self.encoder(images).chunk(2, dim=1)
        return mean, log_std.clamp(-6, 2).exp()


def fit(
    model: MLP, images: Tensor, epochs: int, beta: float = 5e-4, seed: int = 0
) -> Iterator[int]:
    """Train in place; yields the number of epochs done after each of them.

    Args:
        model: With its initial weights.
        images: (N, *shape) in [0, 1].
        epochs: How many.
        beta: Weight of the code's KL beside the mean squared error per pixel.
        seed: Of order and codes.
    """
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(epochs):
        order = Draws.of_range(seed, epoch, 0, len(images)).uniform("order").argsort()
        for rows in order.split(64):
            mean, std = model.encode(images[rows])
            noise = Draws(seed, epoch, rows).normal("code", tuple(mean.shape[1:]))
            error = (model.decoder(mean + std * noise) - images[rows]).square().flatten(1).mean(1)
            optimizer.zero_grad()
            (error + beta * gaussian_code_kl(mean, std)).mean().backward()
            optimizer.step()
        yield epoch + 1


def small(images: Tensor, epochs: int = EPOCHS, seed: int = 0) -> VAE:
    """An `MLP` trained on images (N, *shape) in [0, 1]."""
    torch.manual_seed(seed)
    model = MLP(tuple(images.shape[1:]))
    initial = {name: each.detach().clone() for name, each in model.decoder.named_parameters()}
    for _ in fit(model, images, epochs, seed=seed):
        pass
    return VAE(model.encode, model.decoder, initial)


class _Decoder(nn.Module):
    """The decoder of an `AutoencoderKL`, its images in [0, 1]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.enter, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(codes if self.enter is None else self.enter(codes)) / 2 + 0.5


def of_diffusers(source: str, shape: tuple[int, ...], device: torch.device, seed: int = 0) -> VAE:
    """An `AutoencoderKL` that diffusers saved.

    Its weights before training are not known: those of a network made anew by `seed` take their
    place, which is as good for the bound as long as they saw no image, and looser.

    Args:
        source: The folder of the model, or of a pipeline with a `vae` in it.
        shape: Of the images it is for.
        device: Where it is put.
        seed: Of the weights.

    Raises:
        InstilError: As `eval.latents.autoencoders.load_codec`.
    """
    network = load_codec(source, ("AutoencoderKL",), shape, device).network
    torch.manual_seed(seed)
    fresh = _Decoder(type(network).from_config(network.config)).to(device)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        law = network.encode(2 * images - 1).latent_dist
        return law.mean, law.std

    return VAE(encode, _Decoder(network), dict(fresh.named_parameters()))


def report(
    source: str,
    training: data.Images,
    held_out: data.Images,
    device: torch.device,
    *,
    weight_noise: float,
    samples: int,
    draws: int,
    seed: int,
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The bound of an autoencoder and its left side, as table rows and facts.

    Args:
        source: The folder of an `AutoencoderKL`, or "mlp": a small one is trained first.
        training: What it was trained on, all of it.
        held_out: Other images.
        device: Where to.
        weight_noise: Standard deviation of the noise on the decoder's weights.
        samples: Images of either set that are looked at, at most.
        draws: Decoders and codes per image.
        seed: Of everything random.

    Raises:
        InstilError: A setting is out of its range, the sets differ in shape or share images, or the
            autoencoder cannot be loaded.
    """
    check_noise(weight_noise)
    for name, value, least in (("samples", samples, 2), ("draws", draws, 1)):
        if value < least:
            raise InstilError(f"--{name} {value}: expected {least} or more")
    if training.shape != held_out.shape:
        raise InstilError(
            f"{held_out.source}: images of the shape {held_out.shape}, {training.source} of "
            f"{training.shape}; give images of one shape"
        )
    for each in (training, held_out):
        check_samples(each.pixels)
    refuse_shared(held_out.pixels, training.pixels, "--data", "--trained-on")
    seen, unseen = (_some(each, samples, seed) for each in (training, held_out))
    if source == SMALL:
        vae = small(training.pixels.float() / 255, seed=seed)
    else:
        vae = of_diffusers(source, training.shape, device, seed)
    found = vae_bound(
        vae.encode,
        vae.decoder,
        vae.initial,
        seen,
        unseen,
        weight_noise=weight_noise,
        draws=draws,
        seed=seed,
        count=len(training),
    )
    values = {
        "reconstruction of training images": str(found.reconstruction),
        "encoder term": str(found.encoder),
        "decoder term": f"{found.generator:.4g}",
        "bound": f"{found.total:.4g}",
        "left side, measured": str(found.direct),
    }
    rows = [{"figure": name, "value ± standard error": value} for name, value in values.items()]
    facts = asdict(found) | {"total": found.total, "vacuous": found.vacuous}
    facts |= {"verdict": verdict(found), "weight_noise": weight_noise}
    facts["protocol"] = (
        f"{source}: {len(seen)} of {len(training)} training images of {training.source}, "
        f"{len(unseen)} others of {held_out.source}; mean squared error on [0, 1]"
    )
    return rows, facts


def verdict(found: VAEBound) -> str:
    """The answer in one sentence."""
    if found.vacuous:
        return (
            f"Vacuous: a bound of {found.total:.3g} on a loss that is at most 1; measured directly "
            f"the loss is {found.direct.value:.3g}."
        )
    return (
        f"The loss of unseen images against samples of the prior is at most {found.total:.3g} on "
        f"average; measured directly it is {found.direct.value:.3g}."
    )


def _some(images: data.Images, most: int, seed: int) -> Tensor:
    """At most so many images, at random, in [0, 1]."""
    order = Draws.of_range(seed, 0, 0, len(images)).uniform("subset").argsort()
    return images.pixels[order[:most].sort().values].float() / 255
