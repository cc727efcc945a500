"""Networks, autoencoders and encoders from the folders that `save_pretrained` writes."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from instil.base.errors import InstilError
from instil.base.untrusted import read_json
from instructors.files.weights import format_of


def read_model(
    folder: Path,
    name: str,
    weights: bool = True,
    library: str = "diffusers",
    variant: str | None = None,
) -> Any:
    """Read a model from safetensors, or from a `.bin` by an allow-list, in float32.

    Args:
        folder: The folder of its `config.json` and weights.
        name: Its class.
        weights: If not, it is of the meta device and only its configuration is read.
        library: The module that holds the class.
        variant: The variant of its weights; None for the best of those that are there.

    Raises:
        InstilError: A file is missing or corrupted, does not fit its configuration, or a tensor is
            left over; or the weights are quantised.
    """
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "an unknown method")
        raise InstilError(
            f"{folder.name}/config.json: weights quantised by {method}, which cannot be trained; "
            "name the repository in full or half precision that they were made of"
        )
    kind = getattr(import_module(library), name)  # seconds to import
    if not weights:
        with torch.device("meta"):
            return _empty(kind, folder)
    read = format_of(folder, variant)
    try:
        loaded: Any = kind.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=read.suffix == "safetensors",
            variant=read.variant or None,
            local_files_only=True,
        )
    except Exception as error:  # a corrupted file surfaces as half a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(
            f"weights cannot be loaded ({reason}); download or save them anew"
        ) from error
    network, info = loaded
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[fault]:
            raise InstilError(
                f"weights do not fit config.json, {fault.replace('_', ' ')}: "
                f"{', '.join(map(str, sorted(info[fault])[:5]))}"
            )
    return network.float()


def _empty(kind: Any, folder: Path) -> Any:
    """A network of diffusers or transformers without weights."""
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(folder))
    return kind(kind.config_class.from_pretrained(folder))


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
