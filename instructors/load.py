"""`load(source)`: a folder, an embedded name or a hub id becomes an `Instructor`."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, snapshot_download

from instil.errors import InstilError
from instructors.denoiser import Denoiser
from instructors.discrete import PREDICTIONS, DiscreteVP
from instructors.folder import ADAPTERS, adapt
from instructors.karras import Karras

ZOO = Path(str(files("instructors") / "zoo"))


@dataclass(frozen=True)
class Card:
    """Where an instructor comes from.

    Attributes:
        source: As the user named it.
        folder: Where its files lie.
        licence: As its model card says, or "unknown".
        sha256: Of its weights; twelve hexadecimal digits.
    """

    source: str
    folder: Path
    licence: str
    sha256: str


@dataclass(frozen=True)
class Instructor:
    """A frozen pretrained model: its denoiser and where it comes from."""

    denoiser: Denoiser
    card: Card


def zoo() -> list[str]:
    """Names of the embedded instructors."""
    return sorted(path.parent.name for path in ZOO.glob("*/model_index.json"))


def locate(source: str) -> Path:
    """The folder that `source` means: an existing path, an embedded name, or a hub id (downloaded).

    Raises:
        InstilError: None of the three, or the download failed.
    """
    if Path(source).is_dir():
        return Path(source)
    if source in zoo():
        return ZOO / source
    if Path(source).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InstilError(
            f"{source}: expected the folder of a diffusers model, an embedded name "
            f"({', '.join(zoo())}) or a hub id such as google/ddpm-cifar10-32"
        )
    try:
        patterns = [f"{part}{end}" for part in ("", "unet/") for end in ("*.json", "*.safetensors")]
        patterns += ["scheduler/*.json", "README.md"]
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of them "not there"
        reason = str(error).strip().splitlines()[0]
        raise InstilError(
            f"{source}: no such folder, and not downloaded from the hub: {reason}"
        ) from None


def load(source: str) -> Instructor:
    """Load a pretrained diffusion model, frozen and in eval mode.

    Args:
        source: A folder saved by diffusers (pipeline or bare model), an embedded name, or a hub id.
            An existing folder wins over an embedded name.

    Raises:
        InstilError: Nothing there, a file is missing or corrupted, or the model's class,
            scheduler or prediction type is not supported.
    """
    folder = locate(source)
    where = next((d for d in (folder / "unet", folder) if (d / "config.json").exists()), None)
    if where is None:
        raise InstilError(f"{source}: holds no unet/config.json and no config.json")
    config = _read_json(where / "config.json")
    name = config.get("_class_name")
    if name not in ("UNet2DModel", "SongUNet"):
        raise InstilError(f"{source}: a {name} is not supported; supported: UNet2DModel, SongUNet")
    scheduler = next(
        (
            _read_json(file)
            for file in (
                folder / "scheduler" / "scheduler_config.json",
                folder / "scheduler_config.json",
            )
            if file.exists()
        ),
        None,
    )
    if scheduler is None:
        raise InstilError(
            f"{source}: has no scheduler_config.json, so its noise levels are unknown; "
            "save the scheduler it was trained with beside it"
        )
    denoiser = _adapt(source, _load_unet(source, where, config), scheduler)
    denoiser.eval().requires_grad_(False)
    return Instructor(denoiser, Card(source, folder, _licence(folder), weights_hash(where)))


def weights_hash(folder: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a folder's weights."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InstilError(f"{path}: not a JSON file ({error})") from None


def _load_unet(source: str, folder: Path, config: dict[str, Any]) -> torch.nn.Module:
    from diffusers import UNet2DModel  # seconds to import

    faults = {
        "class_embed_type": config.get("class_embed_type") is not None,
        "center_input_sample": bool(config.get("center_input_sample")),
        "time_embedding_type": config.get("time_embedding_type", "positional") != "positional",
    }
    for key in (key for key, faulty in faults.items() if faulty):
        raise InstilError(f"{source}: UNet2DModel with {key}={config[key]!r} is not supported")
    network_class: Any = UNet2DModel
    if config["_class_name"] == "SongUNet":
        from instructors.song_unet import SongUNet

        network_class = SongUNet
    try:
        loaded: Any = network_class.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # a corrupted file surfaces as half a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(f"{source}: weights cannot be loaded ({reason})") from None
    network, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise InstilError(
                f"{source}: weights do not fit config.json, {kind.replace('_', ' ')}: "
                f"{', '.join(map(str, info[kind][:5]))}"
            )
    return network


def _adapt(source: str, network: Any, scheduler: dict[str, Any]) -> Denoiser:
    """Choose the adapter by the scheduler's configuration."""
    config = network.config
    size = config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    shape, classes = (config.in_channels, *sides), config.num_class_embeds or 0
    name, prediction = scheduler.get("_class_name"), scheduler.get("prediction_type", "epsilon")
    if name == "EDMEulerScheduler" and prediction == "epsilon":
        levels = {key: scheduler[key] for key in ("sigma_min", "sigma_max", "sigma_data")}
        return Karras(network, shape, classes=classes, **levels)
    if name in ADAPTERS:
        try:
            return adapt(scheduler, network, shape, classes)
        except ValueError as error:
            raise InstilError(f"{source}: {error}") from None
    if "beta_schedule" in scheduler and prediction in PREDICTIONS:
        from diffusers import DDPMScheduler

        try:
            schedule: Any = DDPMScheduler.from_config(scheduler)
            return DiscreteVP(network, shape, schedule.alphas_cumprod, prediction, classes)
        except (ValueError, NotImplementedError) as error:
            raise InstilError(f"{source}: {error}") from None
    raise InstilError(
        f"{source}: scheduler {name} with prediction type {prediction!r} is not supported; "
        f"supported: EDMEulerScheduler (epsilon), or one with a beta_schedule and a prediction "
        f"type of {', '.join(PREDICTIONS)}"
    )


def _licence(folder: Path) -> str:
    readme = folder / "README.md"
    if not readme.exists():
        return "unknown"
    return ModelCard.load(readme, ignore_metadata_errors=True).data.get("license") or "unknown"
