"""Pipelines of diffusers, each part read in the format in which it lies there."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from instil.base.errors import InstilError
from instil.base.untrusted import read_json
from instructors.files.models import read_model

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "instructors")
NETWORKS = ("unet", "transformer")
# Parts that no sample depends on; neither downloaded nor exported.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def parts_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each part that samples depend on, by its name."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and None not in value and name[0] != "_" and name not in LEFT_OUT
    }


def names_checker(folder: Path) -> bool:
    """Whether the pipeline in a folder names a safety checker."""
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    return None not in (index.get("safety_checker") or [None])


def class_of(library: str, kind: str) -> Any:
    """The class of a part.

    Raises:
        InstilError: The package that holds it is not installed, or has no such class.
    """
    try:
        return getattr(import_module(library), kind)
    except (ImportError, AttributeError):
        raise InstilError(
            f"the instructor's pipeline needs a {kind} of {library}, which is not installed; "
            "pip install 'instil[text]'"
        ) from None


def is_model(kind: Any) -> bool:
    """Whether a part has weights."""
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def read_pipeline(folder: Path, given: Mapping[str, Any]) -> Any:
    """Read a pipeline; a safety checker is left out.

    Args:
        folder: The folder of its `model_index.json`.
        given: Parts that are not read, by name; None for a part that is not needed.

    Raises:
        InstilError: A part is missing or corrupted.
    """
    import diffusers  # seconds to import

    index = read_json(folder / INDEX)
    parts = dict(given)
    for name, (library, kind) in parts_of(index).items():
        if name not in given and is_model(class_of(library, kind)):
            parts[name] = read_model(folder / name, kind, library=library)
    parts |= {name: None for name in LEFT_OUT if name in index}
    if "safety_checker" in index:
        parts["requires_safety_checker"] = False
    try:
        with no_bars():
            return getattr(diffusers, index["_class_name"]).from_pretrained(
                folder, local_files_only=True, **parts
            )
    except Exception as error:  # missing packages and files surface as a dozen kinds of error
        reason = " ".join(str(error).split())
        raise InstilError(f"the pipeline in {folder} cannot be loaded ({reason})") from error


@contextmanager
def no_bars() -> Generator[None]:
    """Let diffusers load in silence."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
