"""Variational autoencoders: of diffusers, or a small one trained here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.latents.autoencoders import load_codec
from eval.vae.bound import gaussian_code_kl
from instil.base.draws import Draws

EPOCHS = 60  # of the small one


@dataclass(frozen=True)
class VAE:
    """A variational autoencoder, as far as its bound is concerned.

    Attributes:
        encode: Images (N, *shape) in [0, 1] to mean and standard deviation of their code.
        decoder: Codes to images in [0, 1].
        initial: The decoder's parameters before training, or others that saw no image.
    """

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decoder: nn.Module
    initial: Mapping[str, Tensor]


class MLP(nn.Module):
    """A small autoencoder of images in [0, 1] with a Gaussian code.

    Args:
        shape: Shape of an image.
        code: Length of the code.
        width: Width of the hidden layers.
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
    """Train in place; yields the number of finished epochs after each.

    Args:
        model: Network with its initial weights.
        images: (N, *shape) in [0, 1].
        epochs: Number of epochs.
        beta: Weight of the code's KL beside the mean squared error per pixel.
        seed: Seed of order and codes.
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


def train_small(images: Tensor, seed: int = 0) -> VAE:
    """An `MLP` trained on images (N, *shape) in [0, 1]."""
    torch.manual_seed(seed)
    model = MLP(tuple(images.shape[1:]))
    initial = {name: each.detach().clone() for name, each in model.decoder.named_parameters()}
    for _ in fit(model, images, EPOCHS, seed=seed):
        pass
    return VAE(model.encode, model.decoder, initial)


class _Decoder(nn.Module):
    """The decoder of an `AutoencoderKL`, its images in [0, 1]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.enter, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, codes: Tensor) -> Tensor:
        return self.decoder(codes if self.enter is None else self.enter(codes)) / 2 + 0.5


def load_vae(source: str, shape: tuple[int, ...], device: torch.device, seed: int = 0) -> VAE:
    """An `AutoencoderKL` that diffusers saved.

    Its initial weights are unknown. Those of a fresh network take their place: the bound stays
    valid, since they saw no image, and is looser.

    Args:
        source: The folder of the model, or of a pipeline with a `vae` in it.
        shape: Shape of the images.
        device: Device to put it on.
        seed: Seed of the fresh weights.

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
