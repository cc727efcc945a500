"""A checkpoint of EDM's or EDM2's code, an untrusted pickle, as a denoiser."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instil.base.checkpoint import compare
from instil.base.config import validate
from instil.base.errors import InstilError
from instructors.adapters.continuous import ContinuousVE, ContinuousVP
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.denoiser import Denoiser
from instructors.nvidia import adm
from instructors.nvidia.arguments import (
    AdmArguments,
    EDM2Arguments,
    EDMArguments,
    EDMNetworkArguments,
    IDDPMArguments,
    NetworkArguments,
    SongArguments,
    VEArguments,
    VPArguments,
)
from instructors.nvidia.pickles import Array, Node, arguments, read, state_dict

Around = EDMArguments | VPArguments | VEArguments | IDDPMArguments
# Class of the checkpoint: its arguments, and the network it has by default.
PRECONDITIONINGS: dict[str, tuple[type[Around], str]] = {
    "EDMPrecond": (EDMArguments, "DhariwalUNet"),
    "VPPrecond": (VPArguments, "SongUNet"),
    "VEPrecond": (VEArguments, "SongUNet"),
    "iDDPMPrecond": (IDDPMArguments, "DhariwalUNet"),
    "Precond": (EDMArguments, ""),  # EDM2's, which has one network
}
NETWORKS: dict[str, type[EDMNetworkArguments]] = {
    "SongUNet": SongArguments,
    "DhariwalUNet": AdmArguments,
}
SAMPLED = (0.002, 80.0)  # the levels of EDM's and EDM2's samplers (arXiv 2206.00364, table 1)
SMALLEST_SIGMA = SAMPLED[0]  # for checkpoints that name 0


@dataclass(frozen=True)
class Latents:
    """What an autoencoder's latents become before a network sees them, (latent - mean) / std.

    Attributes:
        mean: By channel.
        std: Likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        denoiser: In float32; its network is a `SongUNet`, an `EDM2UNet` or a diffusers
            `UNet2DModel`.
        latents: Mean and deviation of the latents; None for a model of images.
        generator: Whether the network stands without the loss that EDM's code saves beside it, as
            SiD's generators do.
    """

    denoiser: Denoiser
    latents: Latents | None
    generator: bool = False


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: A pickle that holds a network, or a mapping with a network named `ema`.

    Raises:
        InstilError: The file is no such pickle, asks for something that a checkpoint does not need,
            or holds another network than it says.
    """
    root = read(path)
    node = root.get("ema") if isinstance(root, dict) else root
    if not isinstance(node, Node) or node.class_name not in PRECONDITIONINGS:
        got = node.class_name if isinstance(node, Node) else "no network named ema"
        raise InstilError(
            f"{path}: holds {got}; expected one of {', '.join(PRECONDITIONINGS)}, "
            "as EDM's and EDM2's code write"
        )
    kind, default = PRECONDITIONINGS[node.class_name]
    try:
        given = arguments(node)
        tensors = state_dict(node)
        # EDM's way of saying that there is no bound.
        given = {k: v for k, v in given.items() if (k, v) != ("sigma_max", float("inf"))}
        around = validate(kind, {k: v for k, v in given.items() if k in kind.model_fields})
        rest = {k: v for k, v in given.items() if k not in kind.model_fields}
        levels = tensors.pop("u", None)
        if node.class_name == "Precond":
            inside: NetworkArguments = validate(EDM2Arguments, rest)
            # A head that weighs the training loss and that nothing else needs.
            tensors = {k: v for k, v in tensors.items() if not k.startswith("logvar_")}
            tensors = _inside("unet.", tensors)
        else:
            name = rest.pop("model_type", default)
            if not isinstance(name, str) or name not in NETWORKS:
                raise InstilError(f"network {name}: expected one of {', '.join(NETWORKS)}")
            inside = validate(NETWORKS[name], rest)
            tensors = _inside("model.", tensors)
        network = _network(inside, node.class_name == "iDDPMPrecond", tensors)
        shape = (inside.img_channels, inside.img_resolution, inside.img_resolution)
        denoiser = _around(network, shape, inside.label_dim, around, levels)
        low = max(denoiser.sigma_min, SAMPLED[0])  # as EDM's generate.py cuts its range
        high = min(denoiser.sigma_max, SAMPLED[1])
        if low < high and (low, high) != (denoiser.sigma_min, denoiser.sigma_max):
            denoiser.sampled = low, high
        alone = isinstance(root, dict) and node.class_name != "Precond" and "loss_fn" not in root
        return Checkpoint(denoiser, _latents(root, inside.img_channels), alone)
    except InstilError as error:
        raise InstilError(f"{path}: {error}") from error


def _latents(root: Any, channels: int) -> Latents | None:
    """Mean and deviation of the latents, from the encoder's latent * scale + bias."""
    encoder = root.get("encoder") if isinstance(root, dict) else None
    if encoder is None:
        return None
    kind = encoder.class_name if isinstance(encoder, Node) else "no object"
    if kind == "StandardRGBEncoder":
        return None
    if kind != "StabilityVAEEncoder":
        raise InstilError(f"encoder {kind}: expected StandardRGBEncoder or StabilityVAEEncoder")
    found = [encoder.state.get(name) for name in ("scale", "bias")]
    if not all(isinstance(each, Array) and each.shape == (channels,) for each in found):
        raise InstilError(f"encoder: expected a scale and a bias of {channels} numbers")
    scale, bias = (each.numbers.astype("f8") for each in found)
    if not (np.isfinite(bias).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise InstilError("encoder: expected finite numbers, and positive ones as scale")
    return Latents(tuple((-bias / scale).tolist()), tuple((1 / scale).tolist()))


def _inside(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors, which nothing else may stand beside."""
    foreign = [name for name in tensors if not name.startswith(prefix)]
    if foreign:
        raise InstilError(f"{foreign[0]}: a weight outside the network")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _network(given: NetworkArguments, variance: bool, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with the checkpoint's weights."""
    try:
        with torch.device("meta"):  # no memory yet: the file may not hold what it says
            network = _empty(given, given.img_channels * (2 if variance else 1))
    except (ValueError, ArithmeticError) as error:  # such as widths that no normalisation divides
        raise InstilError(f"the network it describes cannot be built: {error}") from None
    if isinstance(given, AdmArguments):
        tensors = adm.unet_tensors(given, tensors)
    expected = network.state_dict()
    shapes = {name: tensor.to("meta", torch.float32) for name, tensor in tensors.items()}
    compare("the network", shapes, expected)
    # Copies, since a file may lay several tensors over the same numbers.
    copies = {name: tensors[name].to(torch.float32, copy=True).contiguous() for name in expected}
    broken = [name for name, tensor in copies.items() if not tensor.isfinite().all()]
    if broken:
        raise InstilError(f"{broken[0]}: holds values that are not finite")
    network.load_state_dict(copies, assign=True)
    return network.eval().requires_grad_(False)


def _empty(given: NetworkArguments, out_channels: int) -> Any:
    """The network, with weights of its own."""
    if isinstance(given, AdmArguments):
        from diffusers import UNet2DModel  # seconds to import

        return UNet2DModel(**adm.unet_config(given, out_channels))
    from instructors.nvidia.edm2_unet import EDM2UNet
    from instructors.nvidia.song_unet import SongUNet

    renamed = {"img_resolution", "img_channels", "label_dim", "augment_dim"}
    unused = {"label_dropout", "use_fp16", "logvar_channels"}
    options = given.model_dump(exclude=renamed | unused) | {
        "sample_size": given.img_resolution,
        "in_channels": given.img_channels,
        "out_channels": out_channels,
        "num_class_embeds": given.label_dim or None,
    }
    if isinstance(given, SongArguments):
        return SongUNet(augment_labels=given.augment_dim, **options)
    return EDM2UNet(**options)


def _around(
    network: nn.Module, shape: tuple[int, ...], classes: int, given: Around, levels: Tensor | None
) -> Denoiser:
    if isinstance(given, EDMArguments):
        low = max(given.sigma_min, SMALLEST_SIGMA)
        return Karras(network, shape, low, given.sigma_max, given.sigma_data, classes)
    if isinstance(given, VPArguments):
        rates: Any = (given.beta_d, given.beta_min, given.M, given.epsilon_t)
        return ContinuousVP(network, shape, *rates, classes=classes)
    if isinstance(given, VEArguments):
        return ContinuousVE(network, shape, given.sigma_min, given.sigma_max, classes)
    if levels is None or levels.shape != (given.M + 1,):
        raise InstilError(f"u: expected the {given.M + 1} noise levels of an iDDPM checkpoint")
    rising = levels.double().flip(0)
    if rising[0] != 0 or not (rising.isfinite().all() and (rising.diff() > 0).all()):
        raise InstilError("u: expected noise levels that fall to 0")
    return DiscreteVP(network, shape, 1 / (1 + rising[1:] ** 2), "epsilon", classes)
