"""Where an instructor lies: an embedded name, a folder or a hub id, and its download."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from instil.base.card import metadata
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instil.base.untrusted import is_dir, is_file, read_json
from instructors.files.source import HUB_ID, Source
from instructors.files.weights import formats

ZOO = Path(str(files("instructors") / "zoo"))
ARCHITECTURES = Path(str(files("instructors") / "architectures"))
CONFIGURATIONS = ["*config.json", "*model_index.json", "*README.md"]


@dataclass(frozen=True)
class Place:
    """The files of a model on this machine.

    Attributes:
        source: The location that the user named.
        folder: The folder of the model's configurations.
        hub: Whether they were downloaded, so that weights may be missing.
    """

    source: Source
    folder: Path
    hub: bool = False

    def fetch(self, parts: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Download the weights of some parts of a hub id, in the first format that is there.

        Args:
            parts: Names of folders beside each other; `.` for the folder itself.
            patterns: Names of further files.

        Raises:
            InstilError: The hub cannot be reached.
        """
        if not self.hub:
            return
        wanted, further = set(parts), list(patterns)
        orders = (formats(self.source.variant), formats() if self.source.variant else ())
        for each in (each for order in orders for each in order):
            names = [*each.patterns, *each.index_patterns]
            paths = [n if part == "." else f"{part}/{n}" for part in sorted(wanted) for n in names]
            if paths or further:
                download(self.source, [*paths, *further])
            further = []
            wanted = {part for part in wanted if not each.files(self.folder / part)}


def zoo() -> list[str]:
    """Names of the embedded instructors."""
    return sorted(path.parent.name for path in ZOO.glob("*/model_index.json"))


def locate(text: str, weights: bool = True) -> Place:
    """Find the configurations of a model: in a folder, embedded, or on the hub.

    Args:
        text: The user's name for it, as `Source.parse` reads it.
        weights: Whether weights are needed. If not, and the hub is out of reach, the configurations
            kept in `architectures` serve for the models that stand there.

    Raises:
        InstilError: There is no such source, or the download failed.
    """
    source = Source.parse(text)
    name = source.source
    if is_file(name):
        raise InstilError(f"{name}: expected the folder of a diffusers model; {_file(name)}")
    if is_dir(name):
        folder, hub = Path(name), False
    elif name in zoo():
        folder, hub = ZOO / name, False
    elif re.fullmatch(HUB_ID, name):
        try:
            folder, hub = download(source, CONFIGURATIONS), True
        except InstilError:
            folder, hub = ARCHITECTURES / name.rpartition("/")[2], False
            if weights or not folder.is_dir():
                raise
            note(f"{name}: the hub was not reached; shapes are those of {folder}")
    else:
        raise InstilError(
            f"{name}: expected the folder of a diffusers model, an embedded name "
            f"({', '.join(zoo())}) or a hub id such as google/ddpm-cifar10-32; write "
            "ID@REVISION for a revision and ID?subfolder=DIR for a folder inside"
        )
    if source.subfolder and not (folder / source.subfolder).is_dir():
        raise InstilError(f"{text}: there is no folder {source.subfolder}")
    return Place(source, folder / (source.subfolder or ""), hub)


def download(source: Source, patterns: list[str]) -> Path:
    """Download the files of a hub id that match `patterns`; returns the folder of all.

    Raises:
        InstilError: There is no such repository, or it cannot be reached.
    """
    inside = f"{source.subfolder}/" if source.subfolder else ""
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    options["allow_patterns"] = [f"{inside}{pattern}" for pattern in patterns]
    options["ignore_patterns"] = ["onnx/*", "openvino/*"]
    try:
        return Path(snapshot_download(source.source, **options))
    except Exception as error:  # huggingface_hub raises a dozen kinds, all of them "not there"
        reason = str(error).strip().splitlines()[0]
        raise InstilError(
            f"{source}: no such folder, and not downloaded from the hub: {reason}"
        ) from None


def network_folder(text: str) -> Path:
    """The folder of a source's network, with its configuration and its weights.

    Raises:
        InstilError: As `locate`, or there is none.
    """
    place = locate(text)
    where = network_config(text, place.folder)[1]
    place.fetch([where.relative_to(place.folder).as_posix()])
    return where


def network_config(source: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """The network's configuration and its folder, beside the weights.

    Raises:
        InstilError: There is none.
    """
    for where in (folder / "unet", folder / "transformer", folder):
        if (where / "config.json").exists():
            return read_json(where / "config.json"), where
    tags = metadata(folder).get("tags")
    lora = (folder / "adapter_config.json").exists() or any(folder.glob("*lora*.safetensors"))
    if lora or (isinstance(tags, list) and "lora" in tags):
        raise InstilError(f"{source}: {LORA}")
    raise InstilError(
        f"{source}: holds no unet/config.json, no transformer/config.json and no config.json; "
        "expected what save_pretrained of diffusers writes"
    )


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration.

    Raises:
        InstilError: There is none.
    """
    for file in (folder / "scheduler", folder):
        if (file / "scheduler_config.json").exists():
            return read_json(file / "scheduler_config.json")
    raise InstilError(
        "has no scheduler_config.json, so its noise levels are unknown; "
        "save the scheduler it was trained with beside it"
    )


LORA = (
    "this is a LoRA: fuse it with fuse_lora() of diffusers (load its base pipeline, "
    "load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained), and name the new folder"
)


def _file(name: str) -> str:
    """The remedy for a single file."""
    path = Path(name)
    if path.suffix == ".pkl":
        return (
            "a pickle can run any code when it is opened, so it is not opened; "
            "`python -m instructors convert` makes a folder of an EDM checkpoint"
        )
    if path.name == "model_index.json":
        return f"name its folder, {path.parent}"
    return _tensors(path) or (
        "a single file of weights says nothing of network and schedule; write a folder of it by "
        "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR) of diffusers"
    )


def _tensors(path: Path) -> str | None:
    """The remedy for a safetensors file that is no checkpoint."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return None
    if path.name.startswith("diffusion_pytorch_model"):
        return f"name the folder that holds its pipeline, such as {path.parent.parent}"
    try:
        with safe_open(path, "pt") as file:
            lora = any("lora" in key for key in file.keys())  # noqa: SIM118, no mapping
    except SafetensorError as error:
        return f"this file is not a whole safetensors file ({error})"
    return LORA if lora else None
