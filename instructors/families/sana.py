"""Sana."""

import inspect
from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import Family
from instructors.families.pixart import encode_masked, masked_text


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(
        noisy,
        encoder_hidden_states=condition["text"],
        encoder_attention_mask=condition["mask"],
        timestep=time * network.config.timestep_scale,
    )


def _encode(
    pipeline: Any, prompts: list[str], negative: str | None, device: Any
) -> dict[str, Tensor]:
    # The instruction that a plain call of the pipeline writes before each prompt.
    call = inspect.signature(pipeline.__call__).parameters
    instruction = call["complex_human_instruction"].default
    return encode_masked(pipeline, prompts, negative, device, complex_human_instruction=instruction)


SANA = Family(
    "SanaTransformer2DModel",
    _forward,
    encoders={"SanaPipeline": _encode},
    text=masked_text,
    autoencoders=("AutoencoderDC",),
    refused={"guidance_embeds": (None, False)},
)
