"""What `python -m eval preflight` settles of a run: what is distilled, how far up, or nothing."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, ValidationError

from distill.recipe import Recipe
from instil.base.config import Config
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir, read_json


class Settings(Config):
    """The part of a preflight's answer that a recipe follows.

    Attributes:
        instructor: To be distilled; a folder beside the file, or what the preflight was asked of.
        sha256: Of its weights, twelve hexadecimal digits.
        T_eps: Noise level that training must reach, in data units.
        sigma_range: Noise levels that the instructor knows.
        distil: Whether it is worth it.
    """

    instructor: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    T_eps: PositiveFloat
    sigma_range: tuple[PositiveFloat, PositiveFloat]
    distil: bool


def read(path: str) -> Settings:
    """Read a preflight's file.

    Raises:
        InstilError: It is none, or its verdict is not to distil.
    """
    file = Path(path)
    try:
        content = read_json(file)
        found = Settings.model_validate_json(json.dumps(content["distill"]))
        verdict = str(content["verdict"])
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InstilError(f"preflight: {path} was changed or cut off ({faults})") from None
    except (KeyError, ValueError) as error:
        raise InstilError(
            f"preflight: {path} is not what `python -m eval preflight --out` writes ({error})"
        ) from None
    if not found.distil:
        raise InstilError(
            f"preflight: {path} says: {verdict} To distil all the same, name the instructor "
            "instead of the preflight"
        )
    beside = file.parent / found.instructor
    return found.replace(instructor=str(beside)) if is_dir(beside) else found


def overrides_from(recipe: Recipe, found: Settings) -> list[str]:
    """What a preflight changes in a recipe, as `key=value`; nothing where it agrees.

    The noise level of training is raised to T_eps where it does not reach it, and never lowered:
    T_eps is a lower bound. A recipe made for another instructor loses its reference images.
    """
    made = []
    if recipe.instructor != found.instructor:
        made += [f"instructor={found.instructor}"]
        if recipe.evaluation.reference != "instructor":
            made += ["evaluation.reference=instructor", "evaluation.held_out=null"]
    low, top = found.sigma_range
    goal, levels = min(found.T_eps, top), recipe.levels
    if levels.sigma_max is not None and levels.sigma_max < goal:
        made.append(f"levels.sigma_max={goal:.6g}")
        levels = levels.replace(sigma_max=goal)
    if levels.highest(low, top) < goal:  # only spaced levels are cut off within their range
        made.append("levels.t_min=0.0")
    return made


def check(recipe: Recipe) -> None:
    """Refuse an instructor that is not the one the preflight chose.

    Raises:
        InstilError: Its weights have another hash.
    """
    from instructors.sources import (
        network_folder,
        weights_hash,  # torch takes seconds to import
    )

    if recipe.preflight is None:
        return
    found = read(recipe.preflight)
    sha = weights_hash(network_folder(recipe.instructor))
    if sha != found.sha256:
        raise InstilError(
            f"preflight: {recipe.preflight} chose {found.instructor} ({found.sha256}), and "
            f"{recipe.instructor} has other weights ({sha}); leave instructor out, or make a "
            "preflight of it"
        )
