"""From an instructor's space to images and back."""

from typing import Any

import torch
from torch import Tensor, nn


class Codec(nn.Module):
    """The identity: samples are images in [-1, 1] already."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to samples (B, *shape)."""
        return images

    def decode(self, samples: Tensor) -> Tensor:
        """Samples (B, *shape) to images (B, C, H, W), about [-1, 1]; not clamped."""
        return samples

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an image, from that of a sample; neither with a batch axis."""
        return shape

    def same_space(self, other: "Codec") -> bool:
        """Whether another's samples mean the same, as far as configurations tell."""
        return type(self) is type(other)


class UnitRange(Codec):
    """Samples are images in [0, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        return (images + 1) / 2

    def decode(self, samples: Tensor) -> Tensor:
        return 2 * samples - 1


class Autoencoder(Codec):
    """An autoencoder of diffusers; a sample is (latent - shift) * scale, by channel or throughout.

    It runs in float32, since the decoder of SDXL overflows in half precision.

    Args:
        network: `AutoencoderKL`, `AutoencoderTiny`, `AutoencoderDC` or `VQModel`; its configuration
            holds a scale and a shift, or the mean and deviation of each channel of its latents.
        unit: Whether it is given images in [0, 1], and makes such.
    """

    def __init__(self, network: Any, unit: bool = False) -> None:
        super().__init__()
        config = network.config
        self.network = network
        self.images = UnitRange() if unit else Codec()
        shift = getattr(config, "latents_mean", None) or [getattr(config, "shift_factor", 0) or 0.0]
        std = getattr(config, "latents_std", None) or [1.0]
        scale = config.scaling_factor / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.float().view(-1, 1, 1), persistent=False)
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        self.factor = 2 ** (len(blocks) - 1)
        self.channels = getattr(config, "out_channels", config.in_channels)

    def encode(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            found = self.network.encode(self.images.encode(images))
        if hasattr(found, "latent_dist"):
            latent = found.latent_dist.mode()
        else:
            latent = found["latent" if "latent" in found else "latents"]
        return (latent - self.shift) * self.scale

    def decode(self, samples: Tensor) -> Tensor:
        with torch.autocast(samples.device.type, enabled=False):
            images = self.network.decode(samples / self.scale + self.shift).sample
        return self.images.decode(images)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.channels, *(side * self.factor for side in shape[1:]))

    def same_space(self, other: Codec) -> bool:
        if not isinstance(other, Autoencoder):
            return False
        same = type(self.network) is type(other.network)
        return (
            same
            and type(self.images) is type(other.images)
            and all(
                torch.equal(getattr(self, name), getattr(other, name))
                for name in ("shift", "scale")
            )
        )
