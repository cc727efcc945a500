"""Stable Diffusion 3 and 3.5."""

from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import KL, Family
from instructors.families.stable_diffusion import encode_pooled


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(
        hidden_states=noisy,
        timestep=time,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
    )


def _unread(network: Any) -> tuple[str, ...]:
    """The queries of the last block's text, whose output nothing reads."""
    last = f"transformer_blocks.{network.config.num_layers - 1}.attn.add_q_"
    return tuple(name for name, _ in network.named_parameters() if name.startswith(last))


STABLE_DIFFUSION_3 = Family(
    "SD3Transformer2DModel",
    _forward,
    encoders={"StableDiffusion3Pipeline": encode_pooled},
    text=lambda config: {
        "text": (77 + 256, config.joint_attention_dim),
        "pooled": (config.pooled_projection_dim,),
    },
    autoencoders=KL,
    constants=_unread,
)
