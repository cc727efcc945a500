"""`instil.distil` and `instil.load_student`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import students.load
from distill.distillation import Distillation
from distill.divergences import Divergence
from distill.recipe import RECIPES, Recipe
from eval.quality.features import Extractor
from instil.base.config import load_recipe, merge, recipe_names, validate
from instil.measuring import extractor_of
from instructors.denoiser import Denoiser
from instructors.load import Instructor
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
    return Distillation(_recipe(source, changes), resume, **objects)


def _recipe(source: Any, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that `distil` means, with the changes on top."""
    content: Mapping[str, Any]
    if isinstance(source, Recipe):
        content = source.model_dump(mode="json")
    elif isinstance(source, Instructor | Denoiser):
        name = source.card.source if isinstance(source, Instructor) else type(source).__name__
        content = {"name": re.sub(r"[^\w.-]+", "-", Path(name).name), "instructor": name}
    elif str(source) in recipe_names(RECIPES).split(", ") or Path(source).suffix == ".yaml":
        content = load_recipe(Recipe, str(source), (), RECIPES).model_dump(mode="json")
    else:
        content = {"name": Path(source).name, "instructor": str(source)}
    for key, value in changes.items():
        change: Any = value
        for part in reversed(SHORT.get(key, key).split(".")):
            change = {part: change}
        content = merge(content, change)
    return validate(Recipe, content)


def load_student(weights: str | Path, **settings: Any) -> Student:
    """Load a generator, in eval mode.

    Args:
        weights: A run's `student/` folder, an embedded name, or a file of weights.
        settings: The other fields of `students.source.Source`, such as `factory`.

    Raises:
        InstilError: Nothing there, or the weights are not those of the generator.
    """
    return students.load.load(validate(Source, {"weights": str(weights)} | settings))
