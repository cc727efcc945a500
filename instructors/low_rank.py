"""Low-rank adapters on a copy of a denoiser that shares every other tensor with it.

What is shared is the tensors and not the module, so both may be walked by autograd at once, and a
recomputed forward pass meets the same weights as the first.
"""

import copy
import re
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import Denoiser, sharing_copy
from instructors.lora import Lora

MARK = ".lora_"  # in the names of peft's tensors


def shared_copy(denoiser: Denoiser, lora: Lora, seed: int, key: str) -> Denoiser:
    """A copy, in eval mode, of which adapters alone are trained and saved.

    Its `state_dict` holds the adapters, and `load_state_dict` wants them all; the rest is frozen
    and stays the very tensors of `denoiser`.

    Args:
        denoiser: Frozen from here on; its bare network is copied.
        lora: Where adapters go.
        seed: Of A; B is zero.
        key: Of the recipe, for messages.

    Raises:
        InstilError: As `inject`, or a target names no layer.
    """
    copied = sharing_copy(denoiser.base())
    inject(copied, _layers(copied, lora, key), lora, seed, key)
    copied.register_state_dict_post_hook(_leave_adapters)
    copied.register_load_state_dict_post_hook(_expect_adapters)
    return copied.eval()


def inject(module: nn.Module, names: list[str], lora: Lora, seed: int, key: str) -> None:
    """Put adapters beside layers, in place; nothing but them requires gradients afterwards.

    Args:
        module: Holds the layers.
        names: Of the layers, linear ones and convolutions.
        lora: Rank and strength.
        seed: Of A; B is zero.
        key: Of the recipe, for messages.

    Raises:
        InstilError: The package peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InstilError(f"{key}: it needs the package peft; pip install 'instil[lora]'") from None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,
        target_modules="|".join(map(re.escape, names)),  # as text, it must match a name as a whole
    )
    inject_adapter_in_model(config, module)
    for name in names:
        _initialise(module.get_submodule(name), name, seed)


def merged(denoiser: Denoiser) -> Denoiser:
    """A copy that shares nothing, with its adapters, if any, added to the weights.

    Returns:
        A denoiser like any other, in float32 or more.
    """
    copied = copy.deepcopy(denoiser)
    copied.halved = False
    for name, layer in adapters(copied).items():
        base = layer.get_base_layer()
        if base.weight.dtype.itemsize < 4:
            base.float()
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(parent), leaf, base)
    return copied


def portable(denoiser: Denoiser) -> dict[str, Tensor]:
    """The adapters of a denoiser's network by the names that diffusers gives them.

    Loaders take alpha for the rank unless they are told, so B carries the factor alpha / rank.
    """
    tensors = {}
    for name, layer in adapters(denoiser).items():
        where = name.removeprefix("network.")
        tensors[f"{where}.lora_A.weight"] = layer.lora_A["default"].weight.detach()
        scaled = layer.lora_B["default"].weight.detach() * layer.scaling["default"]
        tensors[f"{where}.lora_B.weight"] = scaled
    return tensors


def adapters(module: nn.Module) -> dict[str, Any]:
    """The adapted layers of a module, by name."""
    return {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}


def _layers(denoiser: Denoiser, lora: Lora, key: str) -> list[str]:
    """Names of the layers to adapt; a weight that is a buffer is a constant and stays one."""
    found = [
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and isinstance(layer.weight, nn.Parameter)
        and getattr(layer, "groups", 1) == 1
    ]
    if not found:
        raise InstilError(f"{key}: this network has no layers of torch's own; leave it out")
    if lora.targets is None:
        return found
    ends = {target: [n for n in found if f".{n}".endswith(f".{target}")] for target in lora.targets}
    for target, names in ends.items():
        if not names:
            raise InstilError(
                f"{key}.targets: no linear layer or convolution is called {target}; such as "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in found})[:8])}"
            )
    return [name for name in found if any(name in names for names in ends.values())]


@torch.no_grad()
def _initialise(layer: Any, name: str, seed: int) -> None:
    """A uniform as torch starts a linear layer, in float32 or more; B is zero already."""
    for part in (layer.lora_A, layer.lora_B):
        if layer.get_base_layer().weight.dtype.itemsize < 4:
            part.float()
    weight = layer.lora_A["default"].weight
    uniform = Draws.of_range(seed, 0, 0, 1, weight.device).uniform(name, tuple(weight.shape))
    weight.copy_((2 * uniform[0] - 1) * weight[0].numel() ** -0.5)


def _leave_adapters(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A hook of `state_dict`: what is shared is saved with nobody."""
    if adapters(module):  # none are left in a merged copy
        for name in [n for n in state if n.startswith(prefix) and MARK not in n]:
            del state[name]


def _expect_adapters(module: nn.Module, keys: Any) -> None:
    """A hook of `load_state_dict`: what is shared is not missing."""
    if adapters(module):
        tensors = chain(module.named_parameters(), module.named_buffers())
        shared = tuple(name for name, _ in tensors if MARK not in name)
        keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(shared)]
