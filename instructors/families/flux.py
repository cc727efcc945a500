"""FLUX.1, whose guidance is an input of the network."""

from typing import Any

import torch
from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import KL, Family


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    count, channels, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    patches = noisy.view(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = noisy.new_zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows, device=noisy.device)[:, None]
    places[..., 2] = torch.arange(columns, device=noisy.device)
    output = network(
        hidden_states=patches.reshape(count, rows * columns, 4 * channels),
        timestep=time / 1000,  # multiplied by 1000 inside
        guidance=condition.get("guidance"),
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        txt_ids=noisy.new_zeros(condition["text"].shape[1], 3),
        img_ids=places.view(-1, 3),
    ).sample
    patches = output.view(count, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(noisy.shape)


def _text(config: Any) -> dict[str, tuple[int, ...]]:
    guidance: dict[str, tuple[int, ...]] = {"guidance": ()} if config.guidance_embeds else {}
    pooled = (config.pooled_projection_dim,)
    return {"text": (512, config.joint_attention_dim), "pooled": pooled} | guidance


def _encode(
    pipeline: Any, prompts: list[str], negative: str | None, device: Any
) -> dict[str, Tensor]:
    if negative is not None:
        return {}
    text, pooled, _ = pipeline.encode_prompt(prompts, device=device)
    return {"text": text, "pooled": pooled}


FLUX = Family(
    "FluxTransformer2DModel",
    _forward,
    encoders={"FluxPipeline": _encode},
    text=_text,
    has_null_text=False,
    autoencoders=KL,
    channels=lambda config: config.in_channels // 4,
    side=128,
)
