"""Where an instructor lies: an embedded name, a folder or a hub id; its download and hash."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instil.base.untrusted import is_dir, is_file, read_json

ZOO = Path(str(files("instructors") / "zoo"))
ARCHITECTURES = Path(str(files("instructors") / "architectures"))
WEIGHTS = "diffusion_pytorch_model*.safetensors"


def zoo() -> list[str]:
    """Names of the embedded instructors."""
    return sorted(path.parent.name for path in ZOO.glob("*/model_index.json"))


def locate(source: str, weights: bool = True) -> Path:
    """The folder that `source` means: an existing path, an embedded name, or a hub id (downloaded).

    Args:
        source: As the user named it.
        weights: Whether they are needed. If not, and the hub is out of reach, the configurations
            noted in `architectures` serve for the models that stand there.

    Raises:
        InstilError: None of the three, or the download failed.
    """
    if is_dir(source):
        return Path(source)
    if source in zoo():
        return ZOO / source
    if is_file(source):
        raise InstilError(f"{source}: expected the folder of a diffusers model; {_file(source)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InstilError(
            f"{source}: expected the folder of a diffusers model, an embedded name "
            f"({', '.join(zoo())}) or a hub id such as google/ddpm-cifar10-32"
        )
    try:
        folder = download(source, ["*.json", "README.md"])
    except InstilError:
        noted = ARCHITECTURES / source.rpartition("/")[2]
        if weights or not noted.is_dir():
            raise
        note(f"{source}: the hub was not reached; shapes are those of {noted}")
        return noted
    if not weights:
        return folder
    _, where = network_config(source, folder)
    parts = {where.relative_to(folder).as_posix(), "vae"}
    names = [f"{part}/{WEIGHTS}" if part != "." else WEIGHTS for part in parts]
    return download(source, ["*.json", "README.md", *names])


def download(source: str, patterns: list[str]) -> Path:
    """The files of a hub id that match `patterns`, as a local folder.

    Raises:
        InstilError: Not there, or not reachable.
    """
    try:
        ignored = ["*.fp16.*", "*.bf16.*", "*non_ema*"]
        return Path(snapshot_download(source, allow_patterns=patterns, ignore_patterns=ignored))
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of them "not there"
        reason = str(error).strip().splitlines()[0]
        raise InstilError(
            f"{source}: no such folder, and not downloaded from the hub: {reason}"
        ) from None


def network_folder(source: str) -> Path:
    """Where a source's network lies: its configuration and its weights.

    Raises:
        InstilError: As `locate`, or there is none.
    """
    return network_config(source, locate(source))[1]


def network_config(source: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """The network's configuration and its folder, beside the weights.

    Raises:
        InstilError: There is none.
    """
    for where in (folder / "unet", folder / "transformer", folder):
        if (where / "config.json").exists():
            return read_json(where / "config.json"), where
    raise InstilError(
        f"{source}: holds no unet/config.json, no transformer/config.json and no config.json; "
        "expected what save_pretrained of diffusers writes"
    )


def scheduler_config(source: str, folder: Path) -> dict[str, Any]:
    """The scheduler's configuration.

    Raises:
        InstilError: There is none.
    """
    for file in (folder / "scheduler", folder):
        if (file / "scheduler_config.json").exists():
            return read_json(file / "scheduler_config.json")
    raise InstilError(
        f"{source}: has no scheduler_config.json, so its noise levels are unknown; "
        "save the scheduler it was trained with beside it"
    )


def weights_hash(folder: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a folder's weights."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                sha.update(block)
    return sha.hexdigest()[:12]


def _file(source: str) -> str:
    """What to do with a single file."""
    suffix = Path(source).suffix
    if suffix == ".pkl":
        return (
            "a pickle can run any code when it is opened, so it is not opened; "
            "`python -m instructors convert` makes a folder of an EDM checkpoint"
        )
    if suffix == ".safetensors":
        try:
            with safe_open(source, "pt") as file:
                lora = any("lora" in key for key in file.keys())  # noqa: SIM118, no mapping
        except SafetensorError as error:
            return f"this file is not a whole safetensors file ({error})"
        if lora:
            return "this is a LoRA: fuse it with fuse_lora() of diffusers and save the pipeline"
    return "a single file of weights says nothing of network and schedule"
