"""PixArt-alpha and PixArt-sigma."""

from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import KL, Family


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        height, width = (8 * side for side in noisy.shape[-2:])
        size["resolution"] = noisy.new_tensor([[height, width]]).expand(len(noisy), -1)
        size["aspect_ratio"] = noisy.new_tensor([[height / width]]).expand(len(noisy), -1)
    return network(
        noisy,
        timestep=time,
        encoder_hidden_states=condition["text"],
        encoder_attention_mask=condition["mask"],
        added_cond_kwargs=size,
    )


def masked_text(config: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a text of 300 tokens and its mask."""
    return {"text": (300, config.caption_channels), "mask": (300,)}


def encode_masked(
    pipeline: Any, prompts: list[str], negative: str | None, device: Any, **more: Any
) -> dict[str, Tensor]:
    """Encode prompts by a pipeline that returns masks as well; `more` is passed to it."""
    text, mask, null, null_mask = pipeline.encode_prompt(
        prompts, negative is not None, negative_prompt=negative or "", device=device, **more
    )
    if negative is None:
        return {"text": text, "mask": mask}
    return {"null_text": null, "null_mask": null_mask}


PIXART = Family(
    "PixArtTransformer2DModel",
    _forward,
    encoders={"PixArtAlphaPipeline": encode_masked, "PixArtSigmaPipeline": encode_masked},
    text=masked_text,
    autoencoders=KL,
)
