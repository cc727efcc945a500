"""Model cards: Markdown for people, and facts for programs in the YAML above it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from instil.base.config import Config, validate
from instil.base.errors import InstilError

CARD = "README.md"
FEW_STEP_TAG = "few-step-generator"  # a model that looks distilled


class Origin(Config):
    """The facts of anything trained on images, under `instil` in the YAML of its card.

    Attributes:
        data: The images, named as `instil.base.data.load` takes them.
        digest: Eight hexadecimal digits of the images' hash.
        command: The command line that trained it.
    """

    data: str
    digest: str
    command: str


def model_card(
    title: str,
    text: str,
    licence: str,
    tags: Sequence[str],
    library: str | None = None,
    origin: Origin | None = None,
) -> str:
    """A model card as huggingface.co reads it.

    Args:
        title: Its heading.
        text: Markdown below the heading.
        licence: An identifier of huggingface.co, or "unknown".
        tags: Tags to find it by.
        library: The library that loads the model.
        origin: Facts for programs.
    """
    data = ModelCardData(
        library_name=library,
        license=None if licence == "unknown" else licence,
        tags=list(tags),
        instil=origin.model_dump(mode="json") if origin else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}"


def metadata(folder: Path) -> Mapping[str, Any]:
    """The YAML of a folder's card; empty where there is no card, or none that can be read."""
    try:
        return metadata_load(folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def origin_of(folder: Path) -> Origin | None:
    """The facts in a folder's card, if one of our trainings wrote it."""
    facts = metadata(folder).get("instil")
    try:
        return validate(Origin, facts) if isinstance(facts, Mapping) else None
    except InstilError:
        return None
