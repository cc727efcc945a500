"""An instructor's network with fresh weights, or with the source's, for a target's classes."""

import copy
from typing import Any

import torch

from instil.base.errors import InstilError
from instructors.denoiser import Denoiser


def blank(denoiser: Denoiser, classes: int, seed: int) -> Denoiser:
    """A denoiser of the same architecture and preconditioning with initial weights.

    Args:
        denoiser: With one of diffusers' networks, or of that layout.
        classes: Of the target; 0 for none.
        seed: Of the weights, and of nothing else.

    Raises:
        InstilError: As `check`.
    """
    network = check(denoiser, classes)
    changed = {} if classes == denoiser.classes else {"num_class_embeds": classes or None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(network).from_config({**network.config, **changed})
    other = copy.copy(denoiser)
    # copy.copy shares the dictionaries of a module; the network alone is to be another
    other._modules = {**denoiser._modules, "network": fresh.to(next(network.parameters()).device)}
    other.classes = classes
    return other.requires_grad_(True).eval()


def relabelled(denoiser: Denoiser, classes: int) -> Denoiser:
    """The denoiser for as many classes as a target has, its weights otherwise the same.

    Class vectors that have no counterpart start as the mean of all; without classes, that mean
    becomes part of the time embedding. Where the number is the same, they stay.

    Args:
        denoiser: Not changed.
        classes: Of the target; 0 for none.

    Raises:
        InstilError: As `check`.
    """
    if classes == denoiser.classes:
        check(denoiser, classes)
        return copy.deepcopy(denoiser).requires_grad_(True)
    other: Any = blank(denoiser, classes, seed=0)
    source: Any = denoiser.network
    tensors = dict(source.state_dict())
    vectors = tensors.pop("class_embedding.weight", None)
    bias = tensors["time_embedding.linear_2.bias"]
    mean = torch.zeros_like(bias) if vectors is None else vectors.mean(0)
    if classes:
        tensors["class_embedding.weight"] = mean.expand(classes, -1)
    else:
        tensors["time_embedding.linear_2.bias"] = bias + mean
    other.network.load_state_dict(tensors)
    return other


def check(denoiser: Denoiser, classes: int) -> Any:
    """The network of a denoiser that can be transferred to a target of so many classes.

    Raises:
        InstilError: It cannot be told another number of classes, is asked by prompts, or has no
            configuration to build it anew from.
    """
    network: Any = denoiser.base().network
    name = type(network).__name__
    if denoiser.text:
        raise InstilError(
            f"a {name}: transfer is for networks asked by class labels or by nothing; adapt a text "
            "model by LoRA with diffusers' own training scripts, then distil what comes out"
        )
    if not hasattr(network, "from_config"):
        raise InstilError(
            f"a {name}: transfer builds networks anew from their configuration, and this one has "
            "none; derive its class from diffusers' ModelMixin and ConfigMixin, or adapt it with "
            "your own training code, then distil what comes out"
        )
    if classes != denoiser.classes and name != "UNet2DModel":
        raise InstilError(
            f"a {name} of {denoiser.classes} classes cannot be told {classes}; "
            "give target images with as many classes"
        )
    return network
