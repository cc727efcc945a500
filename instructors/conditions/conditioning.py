"""What an instructor is asked for, and whom it is blended with, as sections of a recipe."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from instil.base.config import Config
from instil.base.config.fields import Location


class Conditioning(Config):
    """Conditions without data.

    Attributes:
        labels: How often each class is drawn; None for equally often.
        null_label: The last class label, where it is no class but the null condition.
        prompts: A text file with a prompt per line, for text models.
        negative: The prompt that guidance leads away from; an empty one is the null prompt.
        guidance: Scale of classifier-free guidance on the instructor, 1 for none; for models with
            built-in guidance (FLUX.1-dev), its scale.
    """

    labels: tuple[NonNegativeFloat, ...] | None = None
    null_label: Annotated[int, Field(ge=1)] | None = None
    prompts: Location | None = None
    negative: str = ""
    guidance: NonNegativeFloat = 1.0


class Blending(Config):
    """Further instructors, whose scores are added; fake and student are copies of the first.

    Attributes:
        others: As `instructors.load.load` takes them.
        weights: Of the instructor and the others, one row per level of `sigmas`.
        sigmas: Levels between which weights are interpolated; one for constant weights.
    """

    others: Annotated[tuple[Location, ...], Field(min_length=1)]
    weights: Annotated[tuple[tuple[float, ...], ...], Field(min_length=1)]
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
