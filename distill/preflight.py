"""Reads a preflight and applies it to a recipe: the instructor and the highest noise level."""

import json
from pathlib import Path

from pydantic import ValidationError

from distill.recipe import Recipe
from eval.settings import Settings
from instil.base.config import read_overrides
from instil.base.config.recipes import Layer, resolve
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir, read_json


def read(path: str) -> Settings:
    """Read a preflight's file.

    Raises:
        InstilError: The file is no preflight, or its verdict is not to distil.
    """
    file = Path(path)
    try:
        content = read_json(file)
        settings = Settings.model_validate_json(json.dumps(content["distill"]))
        verdict = str(content["verdict"])
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InstilError(f"preflight: {path} was changed or cut off ({faults})") from None
    except (KeyError, ValueError) as error:
        raise InstilError(
            f"preflight: {path} is not what `python -m eval preflight --out` writes ({error})"
        ) from None
    if not settings.distil:
        raise InstilError(
            f"preflight: {path} says: {verdict} To distil all the same, name the instructor "
            "instead of the preflight"
        )
    beside = file.parent / settings.instructor
    return settings.replace(instructor=str(beside)) if is_dir(beside) else settings


def with_preflight(given: list[Layer]) -> list[Layer]:
    """A recipe's layers with what its preflight settles, below the last one: the user's changes.

    Raises:
        InstilError: The recipe has faults, or the preflight is none or says not to distil.
    """
    preflight = resolve(Recipe, given).preflight
    if preflight is None:
        return given
    *files, changes = given
    before = resolve(Recipe, [*files, ("", {"preflight": preflight})])
    settled = overrides_from(before, read(preflight))
    print(f"from {preflight}: {', '.join(settled) or 'nothing to change'}")  # noqa: T201
    return [*files, (preflight, read_overrides(settled)), changes]


def overrides_from(recipe: Recipe, settings: Settings) -> list[str]:
    """The changes that a preflight makes to a recipe, as `key=value`; none where they agree.

    The highest noise level of training is raised to T_eps, and never lowered: T_eps is a lower
    bound. A recipe made for another instructor loses its reference images.
    """
    changes = []
    if recipe.instructor != settings.instructor:
        changes += [f"instructor={settings.instructor}"]
        if recipe.evaluation.reference != "instructor":
            changes += ["evaluation.reference=instructor", "evaluation.held_out=null"]
    low, high = settings.sigma_range
    goal, levels = min(settings.T_eps, high), recipe.levels
    if levels.sigma_max is not None and levels.sigma_max < goal:
        changes.append(f"levels.sigma_max={goal:.6g}")
        levels = levels.replace(sigma_max=goal)
    if levels.highest(low, high) < goal:  # only spaced levels are cut off within their range
        changes.append("levels.t_min=0.0")
    return changes


def check(recipe: Recipe) -> None:
    """Refuse an instructor that is not the one the preflight chose.

    Raises:
        InstilError: The recipe's instructor has other weights.
    """
    from instructors.files.sources import network_folder  # torch takes seconds to import
    from instructors.files.weights import weights_hash

    if recipe.preflight is None:
        return
    settings = read(recipe.preflight)
    sha = weights_hash(network_folder(recipe.instructor))
    if sha != settings.sha256:
        raise InstilError(
            f"preflight: {recipe.preflight} chose {settings.instructor} ({settings.sha256}), and "
            f"{recipe.instructor} has other weights ({sha}); leave instructor out, or make a "
            "preflight of it"
        )
