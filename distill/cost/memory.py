"""Less memory: activations that are recomputed, frozen weights in half precision."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from instil.base.errors import InstilError
from instructors.denoiser import Denoiser


def recompute_activations(module: nn.Module) -> None:
    """Let the networks of all denoisers in a module recompute activations in backward passes.

    diffusers does so wherever gradients are on, in eval mode too.

    Raises:
        InstilError: A network cannot.
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

    Autocast would round them at every call, so the denoisers are to the bit those that they are
    under autocast; from here on they run under it always. The first layer, a small one, is left
    alone: networks take the type of their first parameter for the one they compute in.

    Raises:
        InstilError: A denoiser must not be rounded.
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
    """The denoisers in a module that have a network, and it."""
    for part in module.modules():
        if isinstance(part, Denoiser) and part.network is not None:
            yield part, part.network
