"""diffusers' `UNet2DModel`, and every network with its signature."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import Family


def forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    """Call a network as `UNet2DModel` is called, with a context where the condition has one."""
    known = {"context": condition["context"]} if "context" in condition else {}
    return network(noisy, time, class_labels=condition.get("label"), **known)


UNET = Family(
    "UNet2DModel",
    forward,
    classes=lambda config: config.num_class_embeds or 0,
    refused={
        "class_embed_type": (None,),
        "center_input_sample": (None, False),
        "time_embedding_type": ("positional",),
    },
    constants=lambda network: (
        ("time_proj.weight",) if network.config.time_embedding_type == "fourier" else ()
    ),
)
# Under the pipeline of unconditional latent diffusion.
UNET_OF_LATENTS = replace(UNET, classes=lambda config: 0, autoencoders=("VQModel", "AutoencoderKL"))
UNKNOWN = Family("", forward)
