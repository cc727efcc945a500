"""Stable Diffusion 1, 2 and XL."""

from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import KL, Family


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    added = None
    if "pooled" in condition:
        # SDXL was told sizes and crop of its training images: here the whole picture, as made.
        height, width = (8 * side for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": condition["pooled"], "time_ids": sizes}
    return network(noisy, time, encoder_hidden_states=condition["text"], added_cond_kwargs=added)


def _text(config: Any) -> dict[str, tuple[int, ...]]:
    text: dict[str, tuple[int, ...]] = {"text": (77, config.cross_attention_dim)}
    if not config.addition_embed_type:
        return text
    sizes = 6 * config.addition_time_embed_dim  # what is left is text
    return text | {"pooled": (config.projection_class_embeddings_input_dim - sizes,)}


def _encode(
    pipeline: Any, prompts: list[str], negative: str | None, device: Any
) -> dict[str, Tensor]:
    text, null = pipeline.encode_prompt(
        prompts, device, 1, negative is not None, negative_prompt=[negative] if negative else None
    )
    return {"text": text} if negative is None else {"null_text": null}


def encode_pooled(
    pipeline: Any, prompts: list[str], negative: str | None, device: Any
) -> dict[str, Tensor]:
    """Encode prompts by the several encoders of SDXL and Stable Diffusion 3."""
    more = {"prompt_2": None} | ({"prompt_3": None} if hasattr(pipeline, "tokenizer_3") else {})
    text, null, pooled, null_pooled = pipeline.encode_prompt(
        prompts,
        device=device,
        do_classifier_free_guidance=negative is not None,
        negative_prompt=[negative] if negative else None,
        **more,
    )
    if negative is None:
        return {"text": text, "pooled": pooled}
    return {"null_text": null, "null_pooled": null_pooled}


STABLE_DIFFUSION = Family(
    "UNet2DConditionModel",
    _forward,
    encoders={"StableDiffusionPipeline": _encode, "StableDiffusionXLPipeline": encode_pooled},
    text=_text,
    autoencoders=KL,
    refused={
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "center_input_sample": (None, False),
        "time_embedding_type": ("positional",),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None,),
        "time_cond_proj_dim": (None,),
    },
)
