"""The contract of a feature extractor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extractor:
    """Images to features and class logits.

    Attributes:
        name: What a Fréchet distance in these features is called.
        standardize: Whether features are z-scored by the reference (never for FID).
        forward: uint8 (B, C, H, W) to features (B, d) and logits (B, K), float32 on the CPU.
        batch: Images of one call of `forward`.
        identity: Network, weights and resizing, for caches; "" if nothing is to be kept.
        protocol: Tool whose resizing this is, for files of statistics; "" where it is none.
        colour: Whether grey images become RGB.
        mixed: Whether `forward` takes a list of images of several shapes too.
    """

    name: str
    standardize: bool
    forward: Callable[[Any], tuple[Tensor, Tensor]]
    batch: int = 512
    identity: str = ""
    protocol: str = ""
    colour: bool = False
    mixed: bool = False

    @torch.no_grad()
    def __call__(self, pixels: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (N, d) and logits (N, K) of uint8 images: (N, C, H, W), or N of (C, H, W)."""
        starts = range(0, len(pixels), self.batch)
        parts = [self.forward(pixels[start : start + self.batch]) for start in starts]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)
