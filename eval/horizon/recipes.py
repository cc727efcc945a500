"""The horizon of what a recipe trains, from its training images alone, by cross-fitting."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from eval.answer import Rows
from eval.cross_fitting import cross_fitted, folds_of
from eval.curves import Estimate, contributions, loss_gap, noise_levels
from eval.horizon.answer import Measured
from eval.horizon.pretrained import condition_of
from eval.image_sets import some
from eval.questions import Horizon
from instil.base import data
from instil.base.config import load_recipe, recipe_names
from instil.base.config.recipes import named_recipes
from instil.base.errors import InstilError
from instil.base.runs import run
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import note
from instructors.denoiser import Denoiser, labelled
from instructors.training import RECIPES
from instructors.training.train import TrainRecipe, fresh, train


def measure_recipe(question: Horizon) -> Measured:
    """The horizon of what a recipe trains; every image is measured by a model that never saw it.

    Args:
        question: Its `model` is a recipe of `instructors train`, the folder of such a run, or the
            instructor in it; its `data` replaces the recipe's.

    Raises:
        InstilError: No such recipe, or its images cannot be loaded or split.
    """
    source = question.model
    changes = [f"data={question.data}"] if question.data else []
    recipe = recipe_of(source, [*question.overrides, *changes])
    images = some(data.load(recipe.data), question.samples, question.seed)
    levels = noise_levels(max(recipe.sigma_min, question.lowest), recipe.sigma_max)
    folds_of(len(images), question.folds)
    fresh(recipe, images, torch.device("cpu"))  # a network that does not fit is refused now
    note(f"{source}: {question.folds} trainings of {recipe.steps} updates")
    accelerator = accelerator_for(recipe.precision, (), recipe.output)
    losses = cross_fitted(
        lambda rows: fit(recipe, images.select(rows), accelerator),
        images.pixels,
        levels,
        reference=question.reference,
        folds=question.folds,
        condition=condition_of(images, len(images.classes)),
        seed=question.seed,
        noise_draws=question.draws,
        device=accelerator.device,
        label="left-out images",
    )
    protocol = f"{source}, {question.folds} folds of {len(images)} images of {images.source}"
    return Measured.of(losses, question, protocol)


def choose_kappa(question: Horizon) -> tuple[Measured, Rows, dict[str, Any]]:
    """The strength of the recipe's penalty whose cross-fitted certificate is least; 0 is tried too.

    Each strength is started where its own certificate is least, and compared with no penalty by
    pairs of samples. A strength that is not clearly better than no penalty is not chosen.

    Args:
        question: With `kappas`.

    Returns:
        The horizon at the chosen strength, and table rows and facts of all strengths.

    Raises:
        InstilError: The recipe has no penalty, or as `measure_recipe`.
    """
    if recipe_of(question.model, question.overrides).penalty is None:
        raise InstilError(
            "--kappas: the recipe has no penalty; add penalty=reference_path or "
            "penalty=score_gradient"
        )
    tried, costs, better = {}, {}, {}
    rows: Rows = []
    facts: list[dict[str, Any]] = []
    for kappa in (0.0, *sorted(set(question.kappas or ()))):
        overrides = (*question.overrides, f"penalty.kappa={kappa}")
        measured = measure_recipe(question.model_copy(update={"overrides": overrides}))
        gap = loss_gap(measured.losses.model, measured.losses.reference)
        top = None if measured.horizon.collapsed else measured.horizon.best.value
        cost = contributions(gap, high=top) if top else torch.zeros(len(gap.losses)).double()
        tried[kappa], costs[kappa] = measured, cost
        difference = Estimate.of(cost - costs[0.0])
        if not kappa or (difference.clear and difference.value < 0):
            better[kappa] = cost.mean().item()
        text = str(difference) if kappa else "-"
        rows.append({"figure": f"kappa {kappa:g}: nats less none", "value ± standard error": text})
        facts.append({"kappa": kappa, "less_none": asdict(difference), **measured.answer().facts})
    chosen = min(better, key=lambda kappa: better[kappa])
    rows.append({"figure": "kappa chosen", "value ± standard error": f"{chosen:g}"})
    return tried[chosen], rows, {"chosen": chosen, "tried": facts}


def recipe_of(source: str, overrides: Sequence[str]) -> TrainRecipe:
    """The recipe that trains `source`, as `measure_recipe` takes it.

    Raises:
        InstilError: There is none, or it has faults.
    """
    near = (Path(source) / run.RECIPE, Path(source).parent / run.RECIPE)
    stored = next((str(path) for path in near if Path(source).is_dir() and path.exists()), source)
    if not Path(stored).is_file() and stored not in named_recipes(RECIPES):
        raise InstilError(
            f"--model {source}: no recipe to train folds by (a file, a run's folder, or one of "
            f"{recipe_names(RECIPES)}); give --folds 1 and images the model was not trained on"
        )
    return load_recipe(TrainRecipe, stored, overrides, RECIPES)


def fit(recipe: TrainRecipe, images: data.Images, accelerator: Accelerator) -> Denoiser:
    """The EMA of a network trained by a recipe on images."""
    state = fresh(recipe, images, accelerator.device)
    condition = labelled(images.labels)
    for _ in train(state, images.pixels, condition, recipe, accelerator):
        pass
    return state.average.module
