"""Images and their classes, and the two ranges they are kept in."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64 in [0, len(classes)), or None.
        classes: Name of each class.
        source: The description it was read from.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """One image without the batch axis: (C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def digest(self) -> str:
        """Eight hexadecimal digits that change with any pixel or label."""
        sha = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()[:8]

    def select(self, rows: Tensor) -> "Images":
        """The images of some rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], labels=labels)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def floats(samples: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]; float64 as it is; everything else as float32."""
    if samples.dtype == torch.uint8:
        return to_float(samples)
    return samples if samples.dtype == torch.float64 else samples.float()


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8, rounded and clipped as diffusers does when it makes pictures.

    Raises:
        FloatingPointError: Some value is no number; as a byte it would look like one.
    """
    if not images.isfinite().all():
        raise FloatingPointError(
            f"{(~images.isfinite()).sum()} of {images.numel()} values of generated images are not "
            "finite; take weights of an earlier checkpoint, or float32"
        )
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
