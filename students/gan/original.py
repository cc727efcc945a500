"""Arguments of NVIDIA's StyleGAN2 generators, by the names of `StyleGAN2`."""

from collections.abc import Mapping
from typing import Any

from instil.base.errors import InstilError

NEEDED = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
RENAMED = {
    "z_dim": "z_dim",
    "c_dim": "classes",
    "w_dim": "w_dim",
    "img_resolution": "resolution",
    "img_channels": "channels",
    "num_layers": "mapping_layers",
    "lr_multiplier": "mapping_rate",
    "w_avg_beta": "average_decay",
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "architecture": "architecture",
    "conv_clamp": "clamp",
    "use_noise": "noise",
}
ONLY: dict[str, Any] = {
    "embed_features": None,
    "layer_features": None,
    "activation": "lrelu",
    "kernel_size": 3,
    "resample_filter": [1, 3, 3, 1],
}
COMPUTING = ("num_fp16_res", "fp16_channels_last", "fused_modconv_default")  # how, not what
# Defaults of `training.networks_stylegan2` in stylegan3 where they are not those of
# `training.networks` in stylegan2-ada-pytorch; it takes the synthesis' arguments as its own.
NEWER = {"clamp": 256.0, "average_decay": 0.998}
# Arguments that only the generators of other papers have.
OTHERS = {
    "magnitude_ema_beta": "StyleGAN3 or StyleGAN-XL",
    "cond": "Projected GAN (FastGAN)",
    "NoiseDimension": "R3GAN",
}


def stylegan2_arguments(original: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the arguments of the original's constructor, as a checkpoint keeps them.

    Args:
        original: `z_dim`, `c_dim`, `w_dim`, `img_resolution`, `img_channels`, the mapping
            `mapping_kwargs` and those of the synthesis, in `synthesis_kwargs` or beside it.

    Raises:
        InstilError: They are those of another generator, one is missing or unknown, or has a value
            that no published configuration uses.
    """
    for name in (name for name in OTHERS if name in original):
        raise InstilError(
            f"a generator of {OTHERS[name]}, which has no counterpart here; give factory= and "
            "arguments= of the code it was trained with"
        )
    flat = dict(original)
    groups = [flat.pop(group, {}) for group in ("mapping_kwargs", "synthesis_kwargs")]
    newer = any(name in RENAMED or name in COMPUTING for name in flat.keys() - set(NEEDED))
    for group in groups:
        if not isinstance(group, Mapping):
            raise InstilError(f"no StyleGAN2 generator: {group!r} is no mapping of arguments")
        flat |= group
    faults = [f"{name} is missing" for name in NEEDED if name not in flat]
    for name, value in flat.items():
        only = ONLY.get(name, value)
        if name not in RENAMED and name not in ONLY and name not in COMPUTING:
            faults.append(f"{name} is not known")
        elif (list(value) if isinstance(value, tuple) else value) != only:
            faults.append(f"{name} is {value!r}, supported is {only!r}")
    if faults:
        raise InstilError(f"no StyleGAN2 generator: {'; '.join(faults)}")
    ours = {name: flat[theirs] for theirs, name in RENAMED.items() if theirs in flat}
    return (NEWER if newer else {}) | ours
