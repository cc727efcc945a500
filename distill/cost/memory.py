"""Ways to save memory: recomputed activations, frozen weights in bfloat16."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from instil.base.errors import InstilError
from instructors.denoiser import Denoiser


def recompute_activations(module: nn.Module) -> None:
    """Recompute activations in the backward passes of every denoiser in a module.

    Raises:
        InstilError: A network does not support it.
    """
    for _, network in _networks(module):
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise InstilError(
                f"train.checkpointing: a {type(network).__name__} cannot recompute its "
                "activations; leave it out"
            )
        network.enable_gradient_checkpointing()


def halve_frozen(module: nn.Module) -> None:
    """Keep the frozen weights of linear layers and convolutions in bfloat16.

    The denoisers then always run under autocast, and compute the same values as with float32
    weights under autocast. The first layer stays in float32, since networks compute in the type of
    their first parameter.

    Raises:
        InstilError: A denoiser must run in float32.
    """
    for denoiser, network in _networks(module):
        first = next(network.parameters())
        layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
            and not layer.weight.requires_grad
            and layer.weight is not first
        ]
        if layers and denoiser.exact:
            raise InstilError(
                f"train.frozen: the output of this {type(network).__name__} is multiplied by "
                f"sigma, up to {denoiser.sigma_max:.3g}, so it runs in float32 and no part of it "
                "may be rounded; leave it out"
            )
        denoiser.halved = bool(layers)
        for parameter in (p for layer in layers for p in layer.parameters()):
            parameter.data = parameter.data.to(torch.bfloat16)


def _networks(module: nn.Module) -> Iterator[tuple[Denoiser, Any]]:
    """The denoisers in a module that have a network, each with its network."""
    for part in module.modules():
        if isinstance(part, Denoiser) and part.network is not None:
            yield part, part.network
