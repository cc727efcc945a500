"""The horizon of an instructor, from its name and images: what is loaded, trained and refused."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from eval import card
from eval.cross_fitting import (
    REFERENCES,
    Losses,
    Reference,
    cross_fitted,
    folds_of,
    paired_losses,
    reference_law,
)
from eval.curves import Estimate, contributions, loss_gap, noise_levels
from eval.horizon.bound import generalization_bound
from eval.horizon.certificate import Horizon, horizon
from eval.image_sets import refuse_shared, some
from instil.base import data
from instil.base.config import load_recipe, recipe_names
from instil.base.config.recipes import named_recipes
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs import run
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import note
from instructors.__main__ import RECIPES
from instructors.codec import Codec
from instructors.denoiser import Condition, Denoiser, class_labels, labelled
from instructors.load import Instructor, load
from instructors.sampler import heun
from instructors.training.train import TrainRecipe, fresh, train

REFERENCE_FOLDS = 5  # of the reference, where the instructor's training images are unknown


@dataclass(frozen=True)
class Question:
    """What is asked, beside the model and the images.

    Attributes:
        folds: 1 takes the model as it is; more train it so often.
        reference: Of the certificate.
        tolerance: Nats per sample.
        lowest: Noise level in data units at which the certificate begins.
        samples: Images that are looked at, at most; generated without any.
        noise_draws: Per image and level.
        seed: Of folds, noise and generated images.
    """

    folds: int = 5
    reference: Reference = "gaussian"
    tolerance: float = 0.02
    lowest: float = 0.02
    samples: int = 1000
    noise_draws: int = 2
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be answered, before anything is loaded.

        Raises:
            InstilError: A value is out of its range.
        """
        if self.reference not in REFERENCES:
            raise InstilError(
                f"--reference {self.reference}: expected one of {', '.join(REFERENCES)}"
            )
        if not 0 < self.tolerance < float("inf"):
            raise InstilError(f"--tolerance {self.tolerance:g}: expected a positive number of nats")
        if not self.lowest > 0:
            raise InstilError(f"--lowest {self.lowest:g}: expected a positive noise level")
        for name, value, least in (
            ("folds", self.folds, 1),
            ("samples", self.samples, 2 * max(self.folds, REFERENCE_FOLDS)),
            ("draws", self.noise_draws, 1),
        ):
            if value < least:
                raise InstilError(f"--{name} {value}: expected {least} or more")


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        horizon: The certificate.
        protocol: How it was measured.
        verdict: One sentence.
        losses: What it was read off.
        instructor: The model, where it was not trained anew.
        training: Images it was trained on, where known.
    """

    horizon: Horizon
    protocol: str
    verdict: str
    losses: Losses
    instructor: Instructor | None = None
    training: data.Images | None = None

    def facts(self) -> dict[str, Any]:
        """For JSON; every estimate with its standard error."""
        return horizon_facts(self.horizon) | {"protocol": self.protocol, "verdict": self.verdict}

    def rows(self) -> list[dict[str, str]]:
        """For the table."""
        found = self.horizon
        gap = found.memorization_gap
        values = {
            "T_opt: sigma where the certificate is least": str(found.best),
            f"T_eps: smallest sigma within {found.tolerance:g} nats": str(found.sufficient),
            "gain over the reference alone, nats": str(found.gain),
            "memorization gap, nats": "unknown" if gap is None else str(gap),
            "crossings": ", ".join(f"{level:.3g}" for level in found.crossings) or "none",
        }
        return [{"figure": name, "value ± standard error": value} for name, value in values.items()]


def horizon_facts(found: Horizon) -> dict[str, Any]:
    """A certificate for JSON; every estimate with its standard error."""
    gap = found.memorization_gap
    return {
        "T_opt": asdict(found.best),
        "T_eps": asdict(found.sufficient),
        "gain": asdict(found.gain),
        "memorization_gap": None if gap is None else asdict(gap),
        "distil": found.gain.clear,
        "tolerance": found.tolerance,
        "crossings": list(found.crossings),
        "curve": {
            "sigma": found.sigmas.tolist(),
            "nats": found.nats.tolist(),
            "stderr": found.stderr.tolist(),
        },
    }


def as_it_is(
    source: str,
    images: str | None,
    question: Question,
    trained_on: str | None = None,
    *,
    bound: bool = False,
) -> Answer:
    """The horizon of a pretrained instructor, on images that it was not trained on.

    Args:
        source: As `instructors.load.load` takes it.
        images: As `instil.base.data.load` takes it; None takes samples of the instructor itself,
            which say nothing about memorisation or about other data.
        question: What is asked.
        trained_on: What the instructor was trained on; None asks its card.
        bound: Whether `bounds_of` will be asked next, which needs those images.

    Raises:
        InstilError: Something cannot be loaded or does not fit, images were trained on, or the
            training images are needed and unknown.
    """
    question.check()
    instructor = load(source)
    denoiser = instructor.denoiser
    if denoiser.text or type(instructor.codec) is not Codec:
        raise InstilError(
            f"{source}: makes latents or asks for prompts, of which no horizon is measured; "
            "give a model of pixels in [-1, 1], with class labels or without"
        )
    levels = denoiser.round_sigma(_levels(denoiser.sigma_min, denoiser.sigma_max, question))
    named = data.load(trained_on) if trained_on else None
    training = named or card.training_images(instructor.card.folder)
    found = None if images is None else data.load(images)
    for each in (found, training):
        if each is not None:
            _check_fit(each, denoiser, source)
    if bound and training is None:
        raise InstilError(
            f"--bound: the training images of {source} are unknown; name them by --trained-on"
        )
    device = Accelerator().device
    denoiser.to(device)
    if found is None:
        found = _generated(denoiser, source, question, device)
    elif training is not None:
        names = f"--data {images}", f"the training images of {source}"
        refuse_shared(found.pixels, training.pixels, *names)
    else:
        note(f"{source}: its training images are unknown; --data must hold none of them")
    found = some(found, question.samples, question.seed)
    options: dict[str, Any] = {
        "seed": question.seed,
        "noise_draws": question.noise_draws,
        "device": device,
        "label": f"{source} on {found.source}",
    }
    if training is None or images is None:
        losses = cross_fitted(
            lambda rows: denoiser,
            found.pixels,
            levels.unique(),
            reference=question.reference,
            folds=REFERENCE_FOLDS,
            trained=False,
            condition=_condition(found, denoiser.classes),
            **options,
        )
    else:
        law = reference_law(question.reference, training.pixels)
        pairs = [
            paired_losses(
                denoiser,
                law,
                each.pixels,
                levels.unique(),
                _condition(each, denoiser.classes),
                **options,
            )
            for each in (found, some(training, len(found), question.seed))
        ]
        losses = Losses(*pairs[0], seen=pairs[1][0])
    protocol = f"{source} on {len(found)} images of {found.source}"
    return _answer(losses, question, protocol, instructor, training)


def by_folds(
    source: str, images: str | None, question: Question, overrides: Sequence[str] = ()
) -> Answer:
    """The horizon of what a recipe trains, from the training images alone, by cross-fitting.

    Args:
        source: A recipe of `instructors train`, the folder of such a run, or the instructor in it.
        images: Replaces the recipe's data.
        question: What is asked.
        overrides: `key=value` changes to the recipe.

    Raises:
        InstilError: No such recipe, or its images cannot be loaded or split.
    """
    question.check()
    recipe = recipe_of(source, [*overrides, *([f"data={images}"] if images else [])])
    found = some(data.load(recipe.data), question.samples, question.seed)
    levels = _levels(recipe.sigma_min, recipe.sigma_max, question)
    folds_of(len(found), question.folds)
    fresh(recipe, found, torch.device("cpu"))  # a network that does not fit is refused now
    note(f"{source}: {question.folds} trainings of {recipe.steps} updates")
    accelerator = accelerator_for(recipe.precision, (), recipe.output)
    losses = cross_fitted(
        lambda rows: fit(recipe, found.select(rows), accelerator),
        found.pixels,
        levels,
        reference=question.reference,
        folds=question.folds,
        condition=_condition(found, len(found.classes)),
        seed=question.seed,
        noise_draws=question.noise_draws,
        device=accelerator.device,
        label="left-out images",
    )
    protocol = f"{source}, {question.folds} folds of {len(found)} images of {found.source}"
    return _answer(losses, question, protocol)


def by_kappa(
    source: str,
    images: str | None,
    question: Question,
    kappas: Sequence[float],
    overrides: Sequence[str] = (),
) -> tuple[Answer, list[dict[str, str]], dict[str, Any]]:
    """How much of the recipe's penalty, none included, by the least cross-fitted certificate.

    Each strength is started where its own certificate is least, and compared with none by pairs of
    samples; one that is not clearly better than none is not chosen.

    Args:
        source: As `by_folds` takes it, and likewise the others.
        images: Likewise.
        question: Likewise.
        kappas: Strengths, beside 0.
        overrides: Likewise; the recipe must have a `penalty`.

    Returns:
        The answer for the chosen strength, table rows and facts of all.

    Raises:
        InstilError: As `by_folds`, or the recipe has no penalty, or a strength is not positive.
    """
    if recipe_of(source, overrides).penalty is None:
        raise InstilError(
            "--kappas: the recipe has no penalty; add penalty=reference_path or "
            "penalty=score_gradient"
        )
    if not kappas or not all(0 < kappa < float("inf") for kappa in kappas):
        raise InstilError(f"--kappas {kappas}: expected positive numbers; 0 is tried anyway")
    found, costs, rows, facts = {}, {}, [], []
    for kappa in (0.0, *sorted(set(kappas))):
        one = by_folds(source, images, question, [*overrides, f"penalty.kappa={kappa}"])
        gap = loss_gap(one.losses.model, one.losses.reference)
        top = None if one.horizon.collapsed else one.horizon.best.value
        cost = contributions(gap, high=top) if top else torch.zeros(len(gap.losses)).double()
        found[kappa], costs[kappa] = one, cost
        difference = Estimate.of(cost - costs[0.0])
        text = str(difference) if kappa else "-"
        rows.append({"figure": f"kappa {kappa:g}: nats less none", "value ± standard error": text})
        facts.append({"kappa": kappa, "less_none": asdict(difference), **one.facts()})
    better = {
        kappa: costs[kappa].mean().item()
        for kappa in found
        if not kappa or ((d := Estimate.of(costs[kappa] - costs[0.0])).clear and d.value < 0)
    }
    chosen = min(better, key=lambda kappa: better[kappa])
    rows.append({"figure": "kappa chosen", "value ± standard error": f"{chosen:g}"})
    return found[chosen], rows, {"chosen": chosen, "tried": facts}


def recipe_of(source: str, overrides: Sequence[str]) -> TrainRecipe:
    """The recipe that trains `source`, as `by_folds` takes it.

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
    """What the recipe trains on these images: the average of its weights."""
    state = fresh(recipe, images, accelerator.device)
    condition = labelled(images.labels)
    for _ in train(state, images.pixels, condition, recipe, accelerator):
        pass
    return state.average.module


def _levels(low: float, high: float, question: Question) -> Tensor:
    return noise_levels(max(low, question.lowest), high)


def _check_fit(images: data.Images, denoiser: Denoiser, source: str) -> None:
    if images.shape != denoiser.shape:
        raise InstilError(
            f"{images.source}: images of the shape {images.shape}, {source} makes "
            f"{denoiser.shape}; give images of that shape"
        )
    classes = len(images.classes)
    if denoiser.classes and classes != denoiser.classes:
        raise InstilError(
            f"{images.source}: {classes or 'no'} classes, {source} knows {denoiser.classes}; "
            "give images with the same classes"
        )


def _condition(images: data.Images, classes: int) -> Condition:
    return labelled(images.labels if classes else None)


def _generated(
    denoiser: Denoiser, source: str, question: Question, device: torch.device
) -> data.Images:
    """Samples of the instructor, as images."""
    note(f"{source}: no --data, so its own samples are looked at; memorisation cannot be seen")
    parts = []
    for start in range(0, question.samples, 500):
        count = min(500, question.samples - start)
        draws = Draws.of_range(question.seed, 0, start, count, device)
        condition = class_labels(denoiser.classes, draws.index)
        parts.append(heun(denoiser, draws.normal("unit", denoiser.shape), 18, condition).cpu())
    labels = torch.arange(question.samples) % denoiser.classes if denoiser.classes else None
    classes = tuple(str(number) for number in range(denoiser.classes))
    return data.Images(data.to_uint8(torch.cat(parts)), labels, classes, "its own samples")


def _answer(
    losses: Losses,
    question: Question,
    protocol: str,
    instructor: Instructor | None = None,
    training: data.Images | None = None,
) -> Answer:
    found = horizon(losses, question.tolerance, question.seed)
    low, high = found.sigmas[0].item(), found.sigmas[-1].item()
    protocol += (
        f"; reference {question.reference}, sigma {low:g} to {high:g}, "
        f"{len(found.sigmas)} levels, {question.noise_draws} noise draws"
    )
    said = verdict(found, question.reference)
    return Answer(found, protocol, said, losses, instructor, training)


def bounds_of(
    found: Answer, question: Question, subgaussian: float | None
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The paper's bound of an instructor on its training images, as table rows and facts.

    Args:
        found: What `as_it_is` answered.
        question: What was asked.
        subgaussian: R, shown beside 0.1, 1, 10 and 100.

    Raises:
        ValueError: The training images are unknown.
    """
    if found.instructor is None or found.training is None:
        raise ValueError("found: expected an instructor whose training images are known")
    denoiser = found.instructor.denoiser
    seen = some(found.training, question.samples, question.seed)
    curve = generalization_bound(
        denoiser,
        seen.pixels,
        found.horizon.sigmas,
        reference_law(question.reference, seen.pixels),
        labels=seen.labels if denoiser.classes else None,
        noise_draws=question.noise_draws,
        seed=question.seed,
        device=next(denoiser.parameters()).device,
        label="training images",
    )
    low, high = curve.range()
    constants = sorted({0.1, 1.0, 10.0, 100.0} | ({subgaussian} if subgaussian else set()))
    rows = [
        {
            "figure": f"bound at R = {r:g}: least at sigma {curve.best(r):.3g}",
            "value ± standard error": f"{curve.at(r).min():.4g}",
        }
        for r in constants
    ]
    text = f"{low:.3g}" if curve.identified else f"not identified: {low:.3g} to {high:.3g}"
    rows.append({"figure": "its minimum for R in [0.1, 100]", "value ± standard error": text})
    facts: dict[str, Any] = {
        "samples": curve.count,
        "generator information": "on noised training images",
        "identified": curve.identified,
        "minimum": {f"{r:g}": curve.best(r) for r in constants},
        "range": [low, high],
    }
    for name in ("sigmas", "information", "encoder", "generator", "score"):
        facts[name] = getattr(curve, name).tolist()
    return rows, facts


def verdict(found: Horizon, reference: Reference) -> str:
    """The answer in one sentence."""
    gap = found.memorization_gap
    learnt = (
        f"; its loss on its training data is {gap.value:.3g} nats lower"
        if gap is not None and gap.clear and gap.value > 0
        else ""
    )
    if found.collapsed:
        return (
            f"Do not distil this: at no noise level does it gain anything over the {reference} "
            f"reference on data it was not trained on{learnt}."
        )
    if not found.gain.clear:
        return (
            f"Undecided: its gain over the {reference} reference, {found.gain} nats, is not clear "
            "of zero; take more images."
        )
    if found.unbounded:
        return (
            f"Run it over its whole range, up to sigma {found.best.value:.3g}, where it still "
            f"gains; starting at {found.sufficient.value:.3g} costs {found.tolerance:g} "
            f"nats{learnt}."
        )
    return (
        f"Run it up to sigma {found.sufficient.value:.3g} at least: starting there from the noisy "
        f"{reference} reference costs {found.tolerance:g} nats, above {found.best.value:.3g} "
        f"nothing is gained{learnt}."
    )
