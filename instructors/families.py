"""Classes of networks: how each is called, what it is conditioned on, what it refuses.

Everything that is particular to a class is one entry of `FAMILIES`. Times are those of training,
up to 1000 for every class; each entry converts them to what its class wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from instructors.denoiser import Condition

# (network, noisy (B, C, H, W), time (B,), condition) -> (B, C or 2C, H, W)
Forward = Callable[[Any, Tensor, Tensor, Condition], Any]


@dataclass(frozen=True)
class Family:
    """One class of networks.

    Attributes:
        forward: Calls the network; returns its output, or an object with the output as `sample`.
        text: From the configuration, the tensors of a condition: their names, and their shapes for
            one prompt of as many tokens as its pipelines ask for.
        classes: From the configuration, the number of class labels; 0 for none.
        has_null_label: Whether the label after the last class is the null one.
        has_null_text: Whether a prompt may be the null condition.
        channels: From the configuration, the channels of a sample.
        side: Height and width of a sample where the configuration names none.
        refused: Settings that change what the network computes, with the values understood.
        latent: Whether samples are latents of an autoencoder.
        constants: Of a network, the names of parameters that training must leave alone: those that
            are constants, or reach no output, for which data parallelism would wait.
    """

    forward: Forward
    text: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    classes: Callable[[Any], int] = lambda config: 0
    has_null_label: bool = False
    has_null_text: bool = True
    channels: Callable[[Any], int] = lambda config: config.in_channels
    side: int | None = None
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    latent: bool = True
    constants: Callable[[Any], tuple[str, ...]] = lambda network: ()

    def fault(self, config: Mapping[str, Any]) -> str | None:
        """The first setting that is not understood, as `key=value`."""
        for key, allowed in self.refused.items():
            if key in config and config[key] not in allowed:
                return f"{key}={config[key]!r}"
        return None


def plain(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    """As `UNet2DModel` is called, and any module with its signature, given a context or not."""
    known = {"context": condition["context"]} if "context" in condition else {}
    return network(noisy, time, class_labels=condition.get("label"), **known)


def _dit(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(noisy, timestep=time, class_labels=condition["label"])


def _unet_text(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    added = None
    if "pooled" in condition:
        # SDXL was told sizes and crop of its training images: here the whole picture, as made.
        height, width = (8 * side for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": condition["pooled"], "time_ids": sizes}
    return network(noisy, time, encoder_hidden_states=condition["text"], added_cond_kwargs=added)


def _sd3(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(
        hidden_states=noisy,
        timestep=time,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
    )


def _pixart(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
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


def _sana(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(
        noisy,
        encoder_hidden_states=condition["text"],
        encoder_attention_mask=condition["mask"],
        timestep=time * network.config.timestep_scale,
    )


def _flux(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
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


def _clip_text(config: Any) -> dict[str, tuple[int, ...]]:
    text: dict[str, tuple[int, ...]] = {"text": (77, config.cross_attention_dim)}
    if not config.addition_embed_type:
        return text
    sizes = 6 * config.addition_time_embed_dim  # what is left is text
    return text | {"pooled": (config.projection_class_embeddings_input_dim - sizes,)}


def _masked_text(config: Any) -> dict[str, tuple[int, ...]]:
    return {"text": (300, config.caption_channels), "mask": (300,)}


# Networks of EDM's and EDM2's checkpoints, which diffusers lacks, and where ours are.
OWN = {"SongUNet": "instructors.nvidia.song_unet", "EDM2UNet": "instructors.nvidia.edm2_unet"}

FAMILIES: dict[str, Family] = {
    "UNet2DModel": Family(
        plain,
        classes=lambda config: config.num_class_embeds or 0,
        refused={
            "class_embed_type": (None,),
            "center_input_sample": (None, False),
            "time_embedding_type": ("positional",),
        },
        latent=False,
        constants=lambda network: (
            ("time_proj.weight",) if network.config.time_embedding_type == "fourier" else ()
        ),
    ),
    "SongUNet": Family(plain, classes=lambda config: config.num_class_embeds or 0, latent=False),
    "EDM2UNet": Family(plain, classes=lambda config: config.num_class_embeds or 0),
    "DiTTransformer2DModel": Family(
        _dit, classes=lambda config: config.num_embeds_ada_norm, has_null_label=True
    ),
    "UNet2DConditionModel": Family(
        _unet_text,
        text=_clip_text,
        refused={
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "center_input_sample": (None, False),
            "time_embedding_type": ("positional",),
            "addition_embed_type": (None, "text_time"),
            "encoder_hid_dim_type": (None,),
            "time_cond_proj_dim": (None,),
        },
    ),
    "SD3Transformer2DModel": Family(
        _sd3,
        text=lambda config: {
            "text": (77 + 256, config.joint_attention_dim),
            "pooled": (config.pooled_projection_dim,),
        },
        # the last block's text is not read, so nobody asks
        constants=lambda network: tuple(
            name
            for name, _ in network.named_parameters()
            if name.startswith(f"transformer_blocks.{network.config.num_layers - 1}.attn.add_q_")
        ),
    ),
    "PixArtTransformer2DModel": Family(_pixart, text=_masked_text),
    "SanaTransformer2DModel": Family(
        _sana,
        text=_masked_text,
        refused={"guidance_embeds": (None, False)},
    ),
    "FluxTransformer2DModel": Family(
        _flux,
        text=lambda config: {
            "text": (512, config.joint_attention_dim),
            "pooled": (config.pooled_projection_dim,),
            **({"guidance": ()} if config.guidance_embeds else {}),
        },
        has_null_text=False,
        channels=lambda config: config.in_channels // 4,
        side=128,
    ),
}


UNKNOWN = Family(plain, latent=False)  # any network with the signature of `UNet2DModel`


def family_of(network: Any) -> Family:
    """The family of a network, by the name of its class."""
    return FAMILIES.get(type(network).__name__, UNKNOWN)


def call(family: Family, network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Evaluate a network.

    Args:
        family: How it is called.
        network: The network.
        noisy: (B, *shape), scaled as the network wants it.
        time: (B,) float; must be a tensor, since diffusers truncates Python floats.
        condition: `label` where the network has classes, the tensors of its family where not.

    Returns:
        (B, *shape) of the dtype of `noisy`; a learned variance in further channels is dropped.
    """
    output = family.forward(network, noisy, time, condition)
    output = output if isinstance(output, Tensor) else output.sample
    return output[:, : noisy.shape[1]].to(noisy.dtype)
