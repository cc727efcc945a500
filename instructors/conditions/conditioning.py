"""The recipe sections `conditioning` and `blend`."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from instil.base.config import Config
from instil.base.config.fields import Location
from instructors.files.source import Named


class Conditioning(Config):
    """Conditions of samples, drawn without data.

    Attributes:
        labels: Relative frequency of each class; null draws all equally often.
        null_label: Number of the last class label, if it stands for the null condition.
        prompts: File of prompts for text models: text with one per line, or a `.csv`,
            `.json`, `.jsonl` or `.parquet` file, whose column is named as `FILE::COLUMN`.
        negative: Negative prompt of guidance; empty for the null prompt.
        guidance: Scale of the instructor's classifier-free guidance, 1 for none, or of its built-in
            guidance (FLUX.1-dev).
    """

    labels: tuple[NonNegativeFloat, ...] | None = None
    null_label: Annotated[int, Field(ge=1)] | None = None
    prompts: Location | None = None
    negative: str = ""
    guidance: NonNegativeFloat = 1.0


class Blending(Config):
    """Further instructors, whose scores are added; fake and student are copies of the first.

    Attributes:
        others: Further instructors: folders, hub ids, or embedded names.
        weights: Weights of the instructor and the others, in this order; one row per entry of
            `sigmas`.
        sigmas: Noise levels of the rows of `weights`, interpolated in between; one for constant
            weights.
    """

    others: Annotated[tuple[Named, ...], Field(min_length=1)]
    weights: Annotated[tuple[tuple[float, ...], ...], Field(min_length=1)]
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
