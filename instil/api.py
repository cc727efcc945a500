"""`instil.distil` and `instil.load_student`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import students.load
from distill.distillation import Distillation
from distill.divergences import Divergence
from distill.preflight import check, with_preflight
from distill.recipe import RECIPES, Recipe
from eval.quality.features import Extractor
from instil.base.config import merge, validate
from instil.base.config.recipes import Layer, layers, named_recipes, resolve
from instil.measuring import extractor_of
from instructors.denoiser import Denoiser
from instructors.instructor import Instructor
from students.source import Source
from students.student import Student

SHORT = {"steps": "train.steps", "batch": "train.batch", "lr": "optimizer.lr"}


def distil(
    source: str | Path | Recipe | Instructor | Denoiser,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    divergence: str | Mapping[str, Any] | Divergence | None = None,
    student: str | Mapping[str, Any] | Student | None = None,
    extractor: str | Extractor | nn.Module | None = None,
    resume: str | None = None,
    **changes: Any,
) -> Distillation:
    """Prepare a distillation: go through it in a loop, or call `finish()`.

    Args:
        source: A recipe: its name, its `.yaml` file, or a `Recipe`. Or an instructor, distilled by
            the recipe's defaults: a folder, a hub id, or a model in memory.
        steps: Updates of the student, `train.steps` of the recipe.
        batch: Images per update, `train.batch`.
        lr: Learning rate of the student, `optimizer.lr`; the fake score has its own,
            `fake={"optimizer": {"lr": …}}`.
        divergence: A kind such as `dmd`, a mapping such as `{"kind": "sid", "alpha": 1.2}`, or an
            object.
        student: The same; a `Student` is trained in place.
        extractor: What measures, `evaluation.extractor`; as in `fid`.
        resume: The folder of a run that goes on, or "" for the newest of this name.
        changes: Any other key of the recipe: `levels="log_uniform"`, `train={"seed": 1}` or
            `**{"train.seed": 1}`.

    Raises:
        InstilError: Bad input, before any long work.
    """
    objects: dict[str, Any] = {}
    if isinstance(source, Instructor | Denoiser):
        objects["instructor"] = source
    if isinstance(student, Student):
        objects["student"], student = student, None
    if isinstance(extractor, Extractor | nn.Module):
        objects["extractor"], extractor = extractor_of(extractor), None
    given = {"steps": steps, "batch": batch, "lr": lr, "divergence": divergence}
    given |= {"student": student, "evaluation.extractor": extractor}
    changes |= {key: value for key, value in given.items() if value is not None}
    given = _recipe(source, changes)
    recipe = resolve(Recipe, with_preflight(given) if resume is None else given)
    if resume is None:
        check(recipe)
    return Distillation(recipe, resume, **objects)


def _recipe(source: Any, changes: Mapping[str, Any]) -> list[Layer]:
    """The recipe that `distil` means, and the changes on top."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        change: Any = value
        for part in reversed(SHORT.get(key, key).split(".")):
            change = {part: change}
        nested = merge(nested, change)
    if isinstance(source, Recipe):
        files: list[Layer] = [("recipe", source.model_dump(mode="json"))]
    elif str(source) in named_recipes(RECIPES) or str(source).endswith((".yaml", ".yml")):
        files = layers(str(source), (), RECIPES)
    else:
        name = str(source)
        if isinstance(source, Instructor | Denoiser):
            name = source.card.source if isinstance(source, Instructor) else type(source).__name__
        folder = re.sub(r"[^\w.-]+", "-", Path(name).name)
        files = [("instructor", {"name": folder, "instructor": name})]
    return [*files, ("Python", nested)]


def load_student(weights: str | Path, **settings: Any) -> Student:
    """Load a generator, in eval mode.

    Args:
        weights: A run's `student/` folder, an embedded name, or a file of weights.
        settings: The other fields of `students.source.Source`, such as `factory`.

    Raises:
        InstilError: Nothing there, or the weights are not those of the generator.
    """
    return students.load.load(validate(Source, {"weights": str(weights)} | settings))
