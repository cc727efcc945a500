"""A checkpoint of EDM's code, an untrusted pickle, as a denoiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instil.checkpoint import compare
from instil.config import validate
from instil.errors import InstilError
from instructors import adm
from instructors.continuous import ContinuousVE, ContinuousVP
from instructors.denoiser import Denoiser
from instructors.discrete import DiscreteVP
from instructors.edm_arguments import (
    AdmArguments,
    EDMArguments,
    IDDPMArguments,
    NetworkArguments,
    SongArguments,
    VEArguments,
    VPArguments,
)
from instructors.karras import Karras
from instructors.pickles import Node, arguments, read, state_dict

Around = EDMArguments | VPArguments | VEArguments | IDDPMArguments
# Class of the checkpoint: its arguments, and the network it has by default.
PRECONDITIONINGS: dict[str, tuple[type[Around], str]] = {
    "EDMPrecond": (EDMArguments, "DhariwalUNet"),
    "VPPrecond": (VPArguments, "SongUNet"),
    "VEPrecond": (VEArguments, "SongUNet"),
    "iDDPMPrecond": (IDDPMArguments, "DhariwalUNet"),
}
NETWORKS: dict[str, type[NetworkArguments]] = {
    "SongUNet": SongArguments,
    "DhariwalUNet": AdmArguments,
}
SMALLEST_SIGMA = 0.002  # of EDM's sampler, for checkpoints that name 0 (arXiv 2206.00364, table 1)


def read_checkpoint(path: Path) -> Denoiser:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: Of a pickle that holds a network, or a mapping with one named `ema`.

    Returns:
        A denoiser in float32, whose network is a `SongUNet` or a diffusers `UNet2DModel`.

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
            "as EDM's code writes"
        )
    kind, default = PRECONDITIONINGS[node.class_name]
    try:
        given = arguments(node)
        tensors = state_dict(node)
        # EDM's way of saying that there is no bound.
        given = {key: each for key, each in given.items() if each != float("inf")}
        name = given.pop("model_type", default)
        if not isinstance(name, str) or name not in NETWORKS:
            raise InstilError(f"network {name}: expected one of {', '.join(NETWORKS)}")
        around = validate(kind, {k: v for k, v in given.items() if k in kind.model_fields})
        rest = {k: v for k, v in given.items() if k not in kind.model_fields}
        inside = validate(NETWORKS[name], rest)
        levels = tensors.pop("u", None)
        network = _network(inside, node.class_name == "iDDPMPrecond", tensors)
        shape = (inside.img_channels, inside.img_resolution, inside.img_resolution)
        return _around(network, shape, inside.label_dim, around, levels)
    except InstilError as error:
        raise InstilError(f"{path}: {error}") from None


def _network(given: NetworkArguments, variance: bool, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with the checkpoint's weights, which nothing else is made of."""
    foreign = [name for name in tensors if not name.startswith("model.")]
    if foreign:
        raise InstilError(f"{foreign[0]}: a weight outside the network")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
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
    from instructors.song_unet import SongUNet

    renamed = ("img_resolution", "img_channels", "label_dim", "augment_dim")
    same = given.model_dump(exclude={*renamed, "label_dropout", "use_fp16"})
    return SongUNet(
        sample_size=given.img_resolution,
        in_channels=given.img_channels,
        out_channels=out_channels,
        num_class_embeds=given.label_dim or None,
        augment_labels=given.augment_dim,
        **same,
    )


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
