"""The part of a preflight that a distillation follows; torch is not needed to read it."""

from typing import Annotated

from pydantic import Field, PositiveFloat

from instil.base.config import Config


class Settings(Config):
    """What `python -m eval preflight` writes under `distill`, and `python -m distill` reads.

    Attributes:
        instructor: The instructor to distil: a folder beside the file, or a name.
        sha256: The hash of its weights, twelve hexadecimal digits.
        T_eps: The noise level that training must reach, in data units.
        sigma_range: The noise levels that the instructor was trained for.
        distil: Whether a distillation is worth it.
    """

    instructor: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    T_eps: PositiveFloat
    sigma_range: tuple[PositiveFloat, PositiveFloat]
    distil: bool
