"""How a network of somebody else's is called: as its settings say, the rest found by trying."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from instil.base.config import own
from instil.base.errors import InstilError
from instructors.denoiser import Condition, class_labels
from students.gan.randomness import Noise, Replay
from students.source import Call
from students.student import one_hot

# Attributes of networks that hold the length of z and the number of labels.
LATENT = ("z_dim", "dim_z", "latent_dim", "latent_size", "nz", "style_dim", "noise_dim", "z_size")
CLASSES = ("num_classes", "n_classes", "c_dim", "n_class", "num_labels")
TRIED = 2  # images per attempt


class NotImagesError(InstilError):
    """The network could be called, but what it returned are no images."""


def call(
    network: nn.Module,
    how: Call,
    z: Tensor,
    condition: Condition,
    noises: Sequence[Noise] | None = None,
    given: Sequence[Tensor] = (),
) -> tuple[Any, list[Noise]]:
    """Call a network.

    Args:
        network: The network.
        how: The description of the call, without gaps.
        z: (B, *latent).
        condition: `label` (B,) int64 if there are classes.
        noises: The random numbers that the network draws itself; None draws them at random.
        given: Their values, (B, *shape) each.

    Returns:
        What the network returns, and the random numbers it drew.
    """
    vectors = one_hot(condition, how.classes or 0, z)
    with Replay(noises, given, len(z), z.device) as replay:
        arguments: list[Any] = [[z] if how.listed else z]
        if how.labels == "one_hot":
            arguments.append(vectors)
        elif how.labels == "index":
            arguments.append(condition["label"])
        elif how.labels is not None:
            arguments.append(network.get_submodule(how.labels)(condition["label"]))
        truncation = inspect.signature(network.forward).parameters.get("truncation")
        needed = truncation is not None and truncation.default is truncation.empty
        options = dict(how.options)
        if needed or (truncation is not None and how.truncation is not None):
            options.setdefault("truncation", how.truncation or 1.0)
        result = network(*arguments, **options)
    return result, replay.drawn


def images_of(result: Any, how: Call) -> Tensor:
    """The images (B, *shape) in what a network returned, channels first.

    Raises:
        NotImagesError: There are none under `how.output`, or none of the wanted shape.
    """
    if how.output is not None:
        outputs = _outputs(result)
        if how.output not in outputs:
            held = ", ".join(map(str, outputs)) or f"a single {type(result).__name__}"
            raise NotImagesError(f"returns no output {how.output}, but {held}")
        result = outputs[how.output]
    if not isinstance(result, Tensor):
        raise NotImagesError(f"returns a {type(result).__name__}, expected images")
    if how.layout == "hwc":
        result = result.movedim(-1, 1)
    if how.shape is not None:
        if result[0].numel() != torch.Size(how.shape).numel():
            raise NotImagesError(f"makes images {tuple(result.shape[1:])}, not shape={how.shape}")
        result = result.reshape(-1, *how.shape)
    return result


def complete(network: nn.Module, how: Call, name: str) -> tuple[Call, list[Noise], tuple[int, ...]]:
    """Find by trying what a description of a call leaves open.

    Args:
        network: In eval mode.
        how: The part that is known.
        name: Name of the network, for messages.

    Returns:
        The whole description, the random numbers that the network draws, the shape of an image.

    Raises:
        InstilError: No call gives images, or calls with two kinds of labels do.
    """
    lengths = _lengths(network) if how.latent is None else [how.latent]
    if not lengths:
        raise InstilError(
            f"latent: {name} does not say the shape of z; give it, such as latent=[128]"
        )
    if how.classes is None:
        how = how.replace(classes=_attribute(network, CLASSES) or 0)
    working, faults = [], []
    for attempt in _attempts(network, how, lengths):
        try:
            working.append(_try(network, attempt, name))
        except InstilError as fault:
            faults.append(fault)
    if not working:
        raise next((f for f in faults if isinstance(f, NotImagesError)), faults[0])
    kinds = {each[0].labels for each in working if each[0].classes}
    if len(kinds) > 1:
        raise InstilError(f"{name}: can be called with labels={' and labels='.join(kinds)}; set it")
    return working[0]


def _attempts(network: nn.Module, how: Call, lengths: Sequence[tuple[int, ...]]) -> Iterator[Call]:
    """Every way to call a network, the likeliest first."""
    if how.labels is not None:
        labels: list[str | None] = [how.labels]
    elif how.classes:
        labels = ["index", "one_hot"]
        labels += ["shared"] * isinstance(getattr(network, "shared", None), nn.Module)
    else:
        labels = [None, "one_hot"]  # StyleGAN's networks take labels without classes
    listed = [False, True] if how.listed is None else [how.listed]
    for second, inside, length in product(labels, listed, lengths):
        yield how.replace(latent=length, labels=second, listed=inside)


@torch.no_grad()
def _try(network: nn.Module, how: Call, name: str) -> tuple[Call, list[Noise], tuple[int, ...]]:
    latent: Any = how.latent
    weights = next(p for p in network.parameters() if p.is_floating_point())
    z = torch.zeros(TRIED, *latent, dtype=weights.dtype, device=weights.device)
    condition = class_labels(how.classes or 0, z.new_zeros(TRIED).long())
    called = f"z {tuple(z.shape)}" + (f" and {how.classes} labels" if how.classes else "")
    with own.running(f"{name}: cannot be called with {called}", "; set latent, classes, labels"):
        result, noises = call(network, how, z, condition)
    try:
        how = _with_output(result, how)
        images = images_of(result, how)
    except NotImagesError as fault:
        raise NotImagesError(f"{name}: {fault}, for {called}") from None
    if images.dim() < 2 or len(images) != TRIED:
        raise NotImagesError(
            f"{name}: expected images (2, …) for {called}, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise NotImagesError(
            f"{name}: makes {images.dtype} images, which have no gradient; return the "
            "floating-point values from before they are rounded"
        )
    return how, noises, tuple(images.shape[1:])


def _with_output(result: Any, how: Call) -> Call:
    """Where the images are among several outputs, and the order of their axes."""
    if how.output is None and (outputs := _outputs(result)):
        tensors = {key: value for key, value in outputs.items() if isinstance(value, Tensor)}
        images = [key for key, value in tensors.items() if value.dim() > 2]
        if len(images or tensors) != 1:
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
            raise NotImagesError(f"returns several outputs ({shapes}); say which, as output=0")
        how = how.replace(output=next(iter(images or tensors)))
    if how.layout is None and how.shape is None:
        axes = images_of(result, how).shape[1:]
        last = len(axes) == 3 and axes[-1] in (1, 3) and axes[0] not in (1, 3)
        how = how.replace(layout="hwc" if last else "chw")
    return how


def _outputs(result: Any) -> dict[Any, Any]:
    """What a network returned by position or key; empty if it is a single thing."""
    if isinstance(result, list | tuple):
        return dict(enumerate(result))
    return dict(result) if isinstance(result, Mapping) else {}


def _lengths(network: nn.Module) -> list[tuple[int, ...]]:
    """Shapes that z may have: by an attribute of the network, else by its first layer."""
    length = _attribute(network, LATENT)
    layers: Iterator[Any] = network.modules()
    inputs = (getattr(m, "in_features", None) or getattr(m, "in_channels", None) for m in layers)
    length = length or next(filter(None, inputs), None)
    return [(length,), (length, 1, 1)] if length else []


def _attribute(network: nn.Module, names: Sequence[str]) -> int | None:
    """The first of these attributes of a network, or of its `config`, that is a whole number."""
    for owner, name in product((network, getattr(network, "config", None)), names):
        value: Any = getattr(owner, name, None)
        if hasattr(value, "__index__") and not isinstance(value, Tensor | bool):
            return int(value)
    return None
