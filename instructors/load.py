"""`load(source)`: a folder, an embedded name or a hub id becomes an `Instructor`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from instil.base.card import metadata
from instil.base.config import own
from instil.base.errors import InstilError
from instil.base.files import cache_folder
from instil.base.untrusted import is_dir, read_json
from instructors.adapters.exploding import ScoreVE
from instructors.adapters.folder import from_config
from instructors.codec import Autoencoder, Codec, UnitRange
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Condition, Denoiser
from instructors.families import FAMILIES, OWN, Family
from instructors.sources import locate, network_config, scheduler_config, weights_hash

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
NCSNPP = ("time_embedding_type", "center_input_sample")


@dataclass(frozen=True)
class Card:
    """Where an instructor comes from.

    Attributes:
        source: As the user named it.
        folder: The folder of its files; of an instructor made in memory, one for its figures.
        licence: As its model card says, or "unknown".
        sha256: Of its weights; twelve hexadecimal digits, or none where none were read.
    """

    source: str
    folder: Path
    licence: str
    sha256: str


@dataclass(frozen=True)
class Instructor:
    """A frozen pretrained model.

    Attributes:
        denoiser: The model.
        card: Where it comes from.
        codec: From its space to images.
        prior: What it is asked for; for text models, empty until prompts are given.
    """

    denoiser: Denoiser
    card: Card
    codec: Codec = field(default_factory=Codec)
    prior: Prior = field(default_factory=Prior)

    @classmethod
    def of(cls, denoiser: Denoiser, name: str) -> "Instructor":
        """An instructor made of a denoiser in memory, frozen, with samples that are images.

        Args:
            denoiser: Frozen in place, and in eval mode from here on.
            name: What cards and messages call it.
        """
        sha = hashlib.sha256(type(denoiser).__name__.encode())
        for key, tensor in denoiser.state_dict().items():
            sha.update(key.encode())
            sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        weights = sha.hexdigest()[:12]
        card = Card(name, cache_folder() / weights, "unknown", weights)
        frozen = denoiser.eval().requires_grad_(False)
        return cls(frozen, card, prior=labels(denoiser.classes))


def load(source: str, side: int | None = None, weights: bool = True) -> Instructor:
    """Load a pretrained diffusion model, frozen and in eval mode.

    Nothing in its files is executed: configurations are JSON, weights safetensors. A factory is
    executed, so it must be code that you trust.

    Args:
        source: A folder saved by diffusers (pipeline or bare model), an embedded name, a hub id, or
            `package.module:factory` or `path/to/file.py:factory`, which returns a `Denoiser` or an
            `Instructor`. An existing folder wins over an embedded name.
        side: Height and width of its samples, for networks that take any; None for its own.
        weights: If not, networks are of the meta device and only configurations are read.

    Raises:
        InstilError: Nothing there, a file is missing or corrupted, the model's class, scheduler or
            prediction type is not supported, or the factory cannot be called.
    """
    if own.is_name(source) and not is_dir(source):
        return _made(source, side, weights)
    folder = locate(source, weights)
    config, where = network_config(source, folder)
    name = config.get("_class_name")
    family = FAMILIES.get(str(name))
    if family is None:
        hint = " (an autoencoder alone is no instructor)" if "Autoencoder" in str(name) else ""
        raise InstilError(
            f"{source}: a {name} is not supported{hint}; supported: {', '.join(FAMILIES)}"
        )
    scheduler = scheduler_config(source, folder)
    schedule = scheduler.get("_class_name")
    fourier = config.get("time_embedding_type") == "fourier"
    # NCSN++ alone divides by sigma inside, and centres images in [0, 1].
    understood = NCSNPP if schedule == "ScoreSdeVeScheduler" and fourier else ()
    fault = family.fault({key: value for key, value in config.items() if key not in understood})
    if fault:
        raise InstilError(f"{source}: {name} with {fault} under {schedule} is not supported")
    network = read_model(source, where, str(name), weights)
    denoiser = _adapt(source, family, network, scheduler, side)
    denoiser.eval().requires_grad_(False)
    codec = UnitRange() if isinstance(denoiser, ScoreVE) else Codec()
    if family.latent:
        codec = _codec(source, folder, weights)
    card = Card(source, folder, _licence(folder), weights_hash(where) if weights else "")
    return Instructor(denoiser, card, codec.eval().requires_grad_(False), labels(denoiser.classes))


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
    if not weights:
        made.denoiser.to("meta")
        made.codec.to("meta")
    return made


def read_model(source: str, folder: Path, name: str, weights: bool = True) -> Any:
    """A model of diffusers' class `name` or ours, from safetensors, every tensor accounted for.

    Without weights it is of the meta device.

    Raises:
        InstilError: A file is missing or corrupted, or does not fit its configuration.
    """
    library = import_module(OWN.get(name, "diffusers"))  # seconds to import
    if not weights:
        with torch.device("meta"):
            return getattr(library, name).from_config(read_json(folder / "config.json"))
    try:
        loaded: Any = getattr(library, name).from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # a corrupted file surfaces as half a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(
            f"{source}: weights cannot be loaded ({reason}); download or save them anew"
        ) from None
    network, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise InstilError(
                f"{source}: weights do not fit config.json, {kind.replace('_', ' ')}: "
                f"{', '.join(map(str, info[kind][:5]))}"
            )
    return network


def read_autoencoder(source: str, kinds: Sequence[str]) -> Any:
    """An autoencoder that diffusers saved.

    Args:
        source: The folder of the model, or of a pipeline with a `vae` in it.
        kinds: The classes it may be of.

    Raises:
        InstilError: There is none, it is of another class, or its files are not whole.
    """
    folders = [Path(source), Path(source) / "vae"]
    where = next((each for each in folders if (each / "config.json").is_file()), None)
    if where is None:
        raise InstilError(
            f"{source}: holds no config.json and no vae/config.json; expected the folder of a "
            "diffusers autoencoder (`hf download NAME --local-dir DIR` makes one)"
        )
    kind = str(read_json(where / "config.json").get("_class_name"))
    if kind not in kinds:
        raise InstilError(f"{source}: a {kind} is not supported; supported: {', '.join(kinds)}")
    return read_model(source, where, kind)


def _adapt(
    source: str, family: Family, network: Any, scheduler: dict[str, Any], side: int | None
) -> Denoiser:
    """The network as a denoiser, of the adapter that the scheduler's configuration asks for."""
    config = network.config
    size = side or getattr(config, "sample_size", None) or family.side
    if size is None:
        raise InstilError(f"{source}: its config.json names no sample_size; set side")
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(each) is int and each > 0 for each in sides):
        raise InstilError(f"{source}: sample_size {size!r}: expected a height and a width, pixels")
    shape, classes = (family.channels(config), *sides), family.classes(config)
    if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
        raise InstilError(
            f"{source}: {config.in_channels} channels in and {config.out_channels} out; expected "
            "as many, or twice as many (a learned variance); inpainting and the like are not "
            "supported"
        )
    for name in family.constants(network):
        parent, _, leaf = name.rpartition(".")
        module = network.get_submodule(parent)
        module.register_buffer(leaf, module._parameters.pop(leaf).detach())
    try:
        denoiser = from_config(scheduler, network, shape, classes)
    except ValueError as error:
        raise InstilError(f"{source}: {error}") from None
    denoiser.text = tuple(family.text(config))
    if family.has_null_label:
        denoiser.set_null(Condition(label=torch.tensor([classes])))
    return denoiser


def _codec(source: str, folder: Path, weights: bool) -> Codec:
    """The autoencoder beside a latent network; the identity where there is none."""
    if not (folder / "vae" / "config.json").exists():
        return Codec()
    name = read_json(folder / "vae" / "config.json").get("_class_name")
    if name not in AUTOENCODERS:
        raise InstilError(
            f"{source}: its autoencoder, a {name}, is not supported; "
            f"supported: {', '.join(AUTOENCODERS)}"
        )
    return Autoencoder(read_model(source, folder / "vae", str(name), weights))


def _licence(folder: Path) -> str:
    """As the model card says; a card that cannot be read says nothing."""
    licence = metadata(folder).get("license")
    return licence if isinstance(licence, str) else "unknown"
