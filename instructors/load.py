"""`load(source)`: a folder, an embedded name or a hub id becomes an `Instructor`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instil.base.card import FEW_STEP_TAG, metadata
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir, read_json
from instructors.adapters.adapter import Adapter
from instructors.adapters.folder import adapt, adapter_of
from instructors.adapters.schedules import signs_of_distillation
from instructors.codec import Autoencoder, Codec, UnitRange
from instructors.conditions.prior import labels
from instructors.denoiser import Condition, Denoiser
from instructors.families import FAMILIES, LEGACY, OLD_NAMES, Family
from instructors.families.unet import UNET, UNET_OF_LATENTS
from instructors.files.models import read_model
from instructors.files.pipelines import INDEX, LIBRARIES, parts_of
from instructors.files.sources import Place, locate, network_config, scheduler_config
from instructors.files.weights import weights_hash
from instructors.instructor import Card, Instructor

CODECS = ("vae", "vqvae")  # where pipelines keep their autoencoder


def load(source: str, side: int | None = None, weights: bool = True) -> Instructor:
    """Load a pretrained diffusion model, frozen and in eval mode.

    Nothing in its files is executed: configurations are JSON, weights safetensors, or `.bin` read
    by an allow-list. A hub id is refused by its configurations before its weights are downloaded.
    A factory is executed, so it must be code that you trust.

    Args:
        source: A folder saved by diffusers (pipeline or bare model), an embedded name, a hub id, or
            `package.module:factory` or `path/to/file.py:factory`, which returns a `Denoiser` or an
            `Instructor`. An existing folder wins over an embedded name. A revision, a variant and
            a subfolder are named as in `instructors.files.sources.Source`.
        side: Height and width of its samples, for networks that take any; None for its own.
        weights: If not, networks are of the meta device and only configurations are read.

    Raises:
        InstilError: Nothing there, a file is missing or corrupted, the model's class, scheduler or
            prediction type is not supported, or the factory cannot be called.
    """
    if own.is_name(source) and not is_dir(source):
        return _made(source, side, weights)
    place = locate(source, weights)
    config, where = network_config(source, place.folder)
    try:
        family = _family(config, place.folder)
        if weights and place.hub:
            _read(place, family, config, where, side, weights=False)
            part = where.relative_to(place.folder).as_posix()
            place.fetch([part, *([vae.name] if (vae := _vae(family, place.folder)) else [])])
        denoiser, codec = _read(place, family, config, where, side, weights)
        sha = weights_hash(where, place.source.variant) if weights else ""
    except InstilError as error:
        raise InstilError(f"{source}: {error}") from error
    card = Card(source, place.folder, _licence(place.folder), sha, _distilled(place, config))
    return Instructor(denoiser, card, codec, labels(denoiser.classes))


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    """The family of a network, in a pipeline that its family knows.

    Raises:
        InstilError: There is none, or the pipeline is another one or runs code of its own.
    """
    name = config.get("_class_name")
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    foreign = [lib for lib, _ in parts_of(index).values() if lib.partition(".")[0] not in LIBRARIES]
    foreign += [each for each in (name, index.get("_class_name")) if isinstance(each, list)]
    if foreign:
        raise InstilError(
            f"its configuration asks for code of its own ({foreign[0]}), which is not executed; "
            "make a Denoiser of the network in a function that you trust, and name it as "
            "package.module:function"
        )
    family = FAMILIES.get(str(name))
    if name == LEGACY:
        family = OLD_NAMES.get(str(config.get("norm_type")))
        name = f"{name} with norm_type={config.get('norm_type')!r}"
    if family is None:
        hint = " (an autoencoder alone is no instructor)" if "Autoencoder" in str(name) else ""
        raise InstilError(f"a {name} is not supported{hint}; supported: {', '.join(FAMILIES)}")
    pipeline = index.get("_class_name")
    if family.encoders and index and pipeline not in family.encoders:
        raise InstilError(
            f"a {pipeline} is not supported; supported around a {name}: "
            f"{', '.join(family.encoders)}"
        )
    beside = next((part for part in CODECS if (folder / part / "config.json").exists()), None)
    if family is UNET and beside:
        if pipeline != "LDMPipeline" or config.get("num_class_embeds"):
            raise InstilError(
                f"a {name} beside {beside}/ is one of latents, which is supported in an "
                "LDMPipeline and without class labels; if it is one of images, move the "
                "autoencoder away"
            )
        return UNET_OF_LATENTS
    return family


def _vae(family: Family, folder: Path) -> Path | None:
    """The folder of the autoencoder of a latent network, if there is one."""
    wheres = (folder / part for part in CODECS if family.latent)
    return next((where for where in wheres if (where / "config.json").exists()), None)


def _read(
    place: Place,
    family: Family,
    config: Mapping[str, Any],
    where: Path,
    side: int | None,
    weights: bool,
) -> tuple[Adapter, Codec]:
    """The denoiser and the codec in a folder, frozen."""
    scheduler = scheduler_config(place.folder)
    adapter = adapter_of(scheduler)
    fault = family.fault({k: v for k, v in config.items() if k not in adapter.understood})
    if fault:
        schedule = scheduler.get("_class_name")
        raise InstilError(f"{family.name} with {fault} under {schedule} is not supported")
    variant = place.source.variant
    network = read_model(where, family.name, weights, family.library, variant)
    if side and not family.latent:
        network.register_to_config(sample_size=side)  # which diffusers' pipelines read
    shape = _shape(family, network.config, side)
    denoiser = adapt(adapter, scheduler, network, shape, family.classes(network.config))
    denoiser.family = family
    codec = _codec(family, denoiser, place.folder, weights)
    _freeze_constants(family, network)
    denoiser.text = tuple(family.text(network.config))
    if family.has_null_label:
        denoiser.set_null(Condition(label=torch.tensor([denoiser.classes])))
    return denoiser.eval().requires_grad_(False), codec.eval().requires_grad_(False)


def _made(source: str, side: int | None, weights: bool) -> Instructor:
    """What a factory of the user's own makes."""
    factory = own.load(source)
    if side:
        raise InstilError(f"side: {source} makes samples of one size; leave side out")
    try:
        made = factory()
    except Exception as error:  # code of the user's, which may raise anything
        reason = " ".join(str(error).split())
        raise InstilError(f"{source}: fails ({type(error).__name__}: {reason})") from error
    if isinstance(made, Denoiser):
        made = Instructor.of(made, source)
    if not isinstance(made, Instructor):
        raise InstilError(
            f"{source}: returns a {type(made).__name__}; expected a Denoiser, such as "
            "Denoiser.of(network, …) makes, or an Instructor"
        )
    card = replace(Instructor.of(made.denoiser, source).card, licence=made.card.licence)
    made = replace(made, card=card, codec=made.codec.eval().requires_grad_(False))
    if not weights:  # a denoiser's own buffers, its levels, are values that a plan reads
        (made.denoiser.network or made.denoiser).to("meta")
        made.codec.to("meta")
    return made


def _shape(family: Family, config: Any, side: int | None) -> tuple[int, ...]:
    """The shape of one sample."""
    size = side or getattr(config, "sample_size", None) or family.side
    if size is None:
        raise InstilError("its config.json names no sample_size; set side")
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(each) is int and each > 0 for each in sides):
        raise InstilError(f"sample_size {size!r}: expected a height and a width, pixels")
    if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
        raise InstilError(
            f"{config.in_channels} channels in and {config.out_channels} out; expected as many, or "
            "twice as many (a learned variance); inpainting and the like are not supported"
        )
    return (family.channels(config), *sides)


def _freeze_constants(family: Family, network: Any) -> None:
    """Make buffers of the parameters that no training may touch."""
    for name in family.constants(network):
        parent, _, leaf = name.rpartition(".")
        module = network.get_submodule(parent)
        module.register_buffer(leaf, module._parameters.pop(leaf).detach())


def _codec(family: Family, denoiser: Adapter, folder: Path, weights: bool) -> Codec:
    """The autoencoder beside a latent network; the identity, or [0, 1], for images."""
    if not family.latent:
        return UnitRange() if denoiser.unit_range else Codec()
    where = _vae(family, folder)
    if where is None:
        return Codec()
    name = read_json(where / "config.json").get("_class_name")
    if name not in family.autoencoders:
        raise InstilError(
            f"its autoencoder, a {name}, is not supported; "
            f"supported: {', '.join(family.autoencoders)}"
        )
    return Autoencoder(read_model(where, name, weights), family.unit_images)


def _distilled(place: Place, config: Mapping[str, Any]) -> str:
    """The reason why a model looks like a distilled one; empty if there is none."""
    index, scheduler = place.folder / INDEX, scheduler_config(place.folder)
    contents = [read_json(index) if index.exists() else {}, config, scheduler]
    paths = [place.source.source, *(str(each.get("_name_or_path", "")) for each in contents)]
    names = [name for path in paths for name in Path(path).parts[-3:]]  # a snapshot's is the third
    if FEW_STEP_TAG in str(metadata(place.folder).get("tags")):
        return f"its card has the tag {FEW_STEP_TAG}"
    return signs_of_distillation(scheduler, names)


def _licence(folder: Path) -> str:
    """As the model card says; a card that cannot be read says nothing."""
    licence = metadata(folder).get("license")
    return licence if isinstance(licence, str) else "unknown"
