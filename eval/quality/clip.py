"""CLIP score: how well images fit the prompts they were made for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instil.base.errors import InstilError


class Clip:
    """A CLIP model of `transformers`.

    Args:
        source: A folder or hub id, such as openai/clip-vit-base-patch16.
        device: Where it runs.

    Raises:
        InstilError: It cannot be loaded.

    Source:
        Hessel et al. 2021, arXiv 2104.08718; scaled by 100, as torchmetrics does, not by 2.5.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError:
            raise InstilError(
                "CLIP score: it needs the package transformers; pip install 'instil[text]'"
            ) from None
        try:
            model: Any = CLIPModel.from_pretrained(source, use_safetensors=True)
            self.processor: Any = CLIPProcessor.from_pretrained(source)
        except Exception as error:  # a missing or broken file surfaces as a dozen kinds of error
            reason = " ".join(str(error).split())
            raise InstilError(f"clip {source}: cannot be loaded ({reason})") from None
        self.source, self.device = source, device
        self.model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, prompts: Sequence[str], batch: int = 64) -> Tensor:
        """Score each image with its prompt.

        Args:
            pixels: (N, C, H, W) uint8, one or three channels.
            prompts: N of them; cut where the model's context ends.
            batch: Images at once.

        Returns:
            (N,) 100 times the cosine of their embeddings, at least 0.
        """
        parts = []
        for first in range(0, len(pixels), batch):
            images = pixels[first : first + batch].expand(-1, 3, -1, -1)
            words = list(prompts[first : first + batch])
            inputs = self.processor(
                text=words, images=list(images), padding=True, truncation=True, return_tensors="pt"
            )
            found = self.model(**inputs.to(self.device))
            cosine = torch.cosine_similarity(found.image_embeds, found.text_embeds)
            parts.append(100 * cosine.clamp(min=0).cpu())
        return torch.cat(parts)
