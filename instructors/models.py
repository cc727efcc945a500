"""Networks and autoencoders from the folders that `save_pretrained` of diffusers writes."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from instil.base.errors import InstilError
from instil.base.untrusted import read_json


def read_model(folder: Path, name: str, weights: bool = True, library: str = "diffusers") -> Any:
    """Read a model from safetensors, every tensor accounted for.

    Args:
        folder: The folder of its `config.json` and weights.
        name: Its class.
        weights: If not, it is of the meta device and only its configuration is read.
        library: The module that holds the class.

    Raises:
        InstilError: A file is missing or corrupted, or does not fit its configuration.
    """
    kind = getattr(import_module(library), name)  # seconds to import
    if not weights:
        with torch.device("meta"):
            return kind.from_config(read_json(folder / "config.json"))
    try:
        loaded: Any = kind.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # a corrupted file surfaces as half a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(
            f"weights cannot be loaded ({reason}); download or save them anew"
        ) from error
    network, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise InstilError(
                f"weights do not fit config.json, {kind.replace('_', ' ')}: "
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
    try:
        return read_model(where, kind)
    except InstilError as error:
        raise InstilError(f"{source}: {error}") from error
