"""DiT: latents asked by class labels."""

from typing import Any

from torch import Tensor

from instructors.denoiser import Condition
from instructors.families.family import KL, Family


def _forward(network: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Any:
    return network(noisy, timestep=time, class_labels=condition["label"])


DIT = Family(
    "DiTTransformer2DModel",
    _forward,
    classes=lambda config: config.num_embeds_ada_norm,
    has_null_label=True,
    autoencoders=KL,
)
