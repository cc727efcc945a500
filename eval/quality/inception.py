"""Inception and other networks of torch-fidelity, under the resizing of three tools."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch_fidelity
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from eval.quality.extractor import Extractor
from instil.base import checkpoint
from instil.base.errors import InstilError

NETWORK = "inception-v3-compat"
SIDE = (299, 299)
BATCH = 32  # more is no faster on a processor, and 32 keep a GPU busy
ALIASES = {"dinov2": "dinov2-vit-l-14", "clip": "clip-vit-l-14"}


def _tf1(images: Tensor) -> Tensor:
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), SIDE, align_corners=False)
    return (resized - 128) / 128


def _pytorch_fid(images: Tensor) -> Tensor:
    unit = images.float() / 255
    return 2 * interpolate(unit, SIDE, mode="bilinear", align_corners=False) - 1


def _clean(images: Sequence[Tensor]) -> Tensor:
    """Each channel by Pillow's antialiased bicubic filter, in float."""

    def resize(image: Tensor) -> Tensor:
        channels = [Image.fromarray(c.numpy().astype(np.float32)) for c in image]
        resized = [c.resize(SIDE, Image.Resampling.BICUBIC) for c in channels]
        return torch.from_numpy(np.stack([np.asarray(c) for c in resized]).clip(0, 255))

    with ThreadPoolExecutor() as pool:  # Pillow resizes outside Python's lock
        return (torch.stack(list(pool.map(resize, images))) - 128) / 128


# By tool: uint8 RGB images to what the network takes, (B, 3, 299, 299) from -1 to 1.
PROTOCOLS: dict[str, Callable[[Any], Tensor]] = {
    "tf1-compat": _tf1,
    "pytorch-fid": _pytorch_fid,
    "clean": _clean,
}


def inception(protocol: str, weights: Path | None, device: str) -> Extractor:
    """The network of FID.

    Args:
        protocol: The tool whose figures it gives: torch-fidelity and TensorFlow's original code
            (`tf1-compat`), pytorch-fid, or clean-fid (`clean`).
        weights: torch-fidelity's weight file; None downloads it.
        device: Where it runs.

    Raises:
        InstilError: The weights are missing, or could not be downloaded.
    """
    network = _create(NETWORK, ["2048", "logits_unbiased"], weights, device)
    *layers, head = network.children()  # in the order of their calls
    body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    prepare, mixed = PROTOCOLS[protocol], protocol == "clean"

    def forward(images: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        rgb = [i.expand(3, -1, -1) for i in images] if mixed else _rgb(images).to(device)
        prepared = prepare(rgb).to(device, memory_format=torch.channels_last)
        features = body(prepared).flatten(1)
        return features.cpu(), features.mm(head.weight.T).cpu()

    name = "FID" if protocol == "tf1-compat" else f"FID ({protocol})"
    identity = f"{NETWORK} {protocol} {checkpoint.digest(network)}"
    return Extractor(name, False, forward, BATCH, identity, protocol, True, mixed)


def registered(name: str, weights: Path | None, device: str) -> Extractor:
    """Another network that torch-fidelity knows, such as DINOv2 or CLIP."""
    name = ALIASES.get(name, name)
    kind = torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY[name]
    network = _create(name, [kind.get_default_feature_layer_for_metric("fid")], weights, device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = network(_rgb(images).to(device))
        return features.cpu(), features.new_empty(len(features), 0).cpu()

    identity = f"{name} {checkpoint.digest(network)}"
    return Extractor(f"FD-{name}", False, forward, BATCH, identity, "", True)


def _rgb(images: Tensor | list[Tensor]) -> Tensor:
    if isinstance(images, list):
        raise InstilError("images of several shapes: make all one size, or give --protocol clean")
    return images.expand(-1, 3, -1, -1)


def _create(name: str, layers: list[str], weights: Path | None, device: str) -> nn.Module:
    if weights is not None and not weights.is_file():
        raise InstilError(f"{name} weights {weights}: no such file")
    options = {} if weights is None else {"feature_extractor_weights_path": str(weights)}
    try:
        return torch_fidelity.utils.create_feature_extractor(
            name, layers, cuda=device == "cuda", verbose=False, **options
        )
    except NotImplementedError:
        raise InstilError(f"{name}: takes no weight file; leave --weights out") from None
    except URLError as error:
        ours = "fetch weights-inception-2015-12-05-6726825d.pth from torch-fidelity's v0.2.0 "
        hint = f"{ours}release and pass it as --weights" if name == NETWORK else "check the network"
        raise InstilError(
            f"{name}: its weights could not be downloaded ({error.reason}); {hint}, or choose an "
            "offline extractor"
        ) from None
