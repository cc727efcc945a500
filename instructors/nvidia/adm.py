"""The ADM network of EDM checkpoints as a stock diffusers `UNet2DModel`, weight by weight.

Both compute the same; they differ in names, in how queries, keys and values are interleaved, and in
that diffusers looks a class up where ADM multiplies a one-hot vector.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from instil.base.errors import InstilError
from instructors.nvidia.arguments import AdmArguments

GROUPS = 32  # of every normalisation; ADM has fewer where there are less than four channels each
HEAD = 64  # channels of an attention head
RENAMED = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
TOP = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}


def unet_config(given: AdmArguments, out_channels: int) -> dict[str, Any]:
    """The arguments of a `UNet2DModel` that computes what ADM does.

    Raises:
        InstilError: `UNet2DModel` cannot be told to.
    """
    widths = [given.model_channels * each for each in given.channel_mult]
    attends = [given.img_resolution >> n in given.attn_resolutions for n in range(len(widths))]
    faults = {
        f"channel_mult[0]={given.channel_mult[0]}, expected 1": given.channel_mult[0] != 1,
        f"channel_mult_emb={given.channel_mult_emb}, expected 4": given.channel_mult_emb != 4,
        f"widths {widths}, expected multiples of {GROUPS} from {4 * GROUPS} on": any(
            width < 4 * GROUPS or width % GROUPS for width in widths
        ),
        f"widths {widths}, expected multiples of {HEAD} where there is attention": any(
            width % HEAD
            for width, attention in zip(widths, [*attends[:-1], True], strict=True)
            if attention
        ),
    }
    for fault in (fault for fault, present in faults.items() if present):
        raise InstilError(f"an ADM network with {fault}, has no equal in diffusers' UNet2DModel")
    down = ["AttnDownBlock2D" if attention else "ResnetDownsampleBlock2D" for attention in attends]
    up = ["AttnUpBlock2D" if attention else "ResnetUpsampleBlock2D" for attention in attends[::-1]]
    return {
        "sample_size": given.img_resolution,
        "in_channels": given.img_channels,
        "out_channels": out_channels,
        "block_out_channels": widths,
        "layers_per_block": given.num_blocks,
        "down_block_types": down,
        "up_block_types": up,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": HEAD,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,  # without it the attention in the middle has no norm
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "positional",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "dropout": given.dropout,
        "num_class_embeds": given.label_dim or None,
    }


def unet_tensors(given: AdmArguments, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ADM's weights by the names and in the layout of `UNet2DModel`.

    The matrix of the augmentation vector is left out: it has no bias, and a sample that is not
    augmented has the zero vector.

    Raises:
        InstilError: A name is not one of ADM, or a filter is not the mean of four pixels.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter"):
            if tensor.shape != (1, 1, 2, 2) or (tensor != 0.25).any():
                raise InstilError(f"{name}: an ADM network averages four pixels, this one does not")
        elif name != "map_augment.weight":
            for target, value in _renamed(given, name, tensor):
                if target in found:
                    raise InstilError(f"{name}: a weight that the file holds under another name")
                found[target] = value
    return found


def _renamed(given: AdmArguments, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    part, _, kind = name.rpartition(".")
    if part in TOP:
        yield f"{TOP[part]}.{kind}", tensor
        return
    if name == "map_label.weight":
        yield "class_embedding.weight", tensor.T
        return
    sizes = [given.img_resolution >> level for level in range(len(given.channel_mult))]
    match = re.fullmatch(r"(enc|dec)\.(\d+)x\2_([a-z]+)(\d*)(?:\.(\w+))?", part)
    if match is None or int(match[2]) not in sizes:
        raise InstilError(f"{name}: not a weight of an ADM network")
    side, resolution, role, number, inner = match.groups()
    if role == "conv":
        yield f"conv_in.{kind}", tensor
        return
    level, number = sizes.index(int(resolution)), number or "0"
    last = len(sizes) - 1
    block, resnet = {
        ("enc", "block"): (f"down_blocks.{level}", f"resnets.{number}"),
        ("enc", "down"): (f"down_blocks.{level - 1}", "downsamplers.0"),
        ("dec", "in"): ("mid_block", f"resnets.{number}"),
        ("dec", "block"): (f"up_blocks.{last - level}", f"resnets.{number}"),
        ("dec", "up"): (f"up_blocks.{last - 1 - level}", "upsamplers.0"),
    }.get((side, role), ("", ""))
    attention = f"{block}.attentions.{number}"
    if block and inner in RENAMED:
        yield f"{block}.{resnet}.{RENAMED[inner]}.{kind}", tensor
    elif inner == "norm2":
        yield f"{attention}.group_norm.{kind}", tensor
    elif inner == "proj":
        yield f"{attention}.to_out.0.{kind}", tensor.flatten(1) if kind == "weight" else tensor
    elif inner == "qkv":
        # Each channel's query, key and value lie side by side.
        for offset, target in enumerate(("to_q", "to_k", "to_v")):
            rows = tensor[offset::3]
            yield f"{attention}.{target}.{kind}", rows.flatten(1) if kind == "weight" else rows
    else:
        raise InstilError(f"{name}: not a weight of an ADM network")
