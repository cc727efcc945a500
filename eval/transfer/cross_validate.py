"""Arms of a transfer, cross-validated on the target: every model is scored on unseen images."""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from eval import card
from eval.answer import Answer, Rows
from eval.cross_fitting import Losses, cross_fitted, folds_of
from eval.curves import Estimate, contributions, noise_levels
from eval.image_sets import check_samples, refuse_shared, some
from eval.questions import Arms
from eval.transfer.compare import FROZEN, SCRATCH, Comparison, folds_for, verdict
from instil.base import data
from instil.base.config import load_recipe
from instil.base.runs.monitor import note
from instructors.instructor import Instructor
from instructors.transfer import Arm
from instructors.transfer.adapt import Target, adapt, save
from instructors.transfer.arms import HIGHEST, Transfer


@dataclass(frozen=True)
class CrossValidation:
    """Cross-validated arms.

    Attributes:
        comparison: Held-out nats of the arms.
        losses: Held-out losses by arm, and of the reference.
        updates: Number of updates after which the held-out loss was least, by arm and fold.
        seconds: Duration by arm.
        target: The images.
        protocol: How the arms were measured, in one sentence.
    """

    comparison: Comparison
    losses: dict[str, Losses]
    updates: dict[str, list[int]]
    seconds: dict[str, float]
    target: Target
    protocol: str

    def answer(self) -> Answer:
        """Rows, facts and verdict."""
        return Answer(self.protocol, self._rows(), self._facts(), verdict(self.comparison))

    def _rows(self) -> Rows:
        compared, rows = self.comparison, []
        for arm, nats in compared.nats.items():
            paired = arm != SCRATCH and SCRATCH in compared.nats
            rows.append(
                {
                    "arm": f"{arm} *" if arm == compared.best else arm,
                    "nats": str(Estimate.of(nats)),
                    "less scratch": str(compared.less(arm, SCRATCH)) if paired else "",
                    "updates": f"{statistics.median(self.updates[arm]):g}",
                    "seconds": f"{self.seconds[arm]:.0f}",
                }
            )
        if compared.gap is not None:
            name = f"embedding gap: {FROZEN} less {compared.seeing}"
            rows.append(dict.fromkeys(rows[0], "") | {"arm": name, "nats": str(compared.gap)})
        return rows

    def _facts(self) -> dict[str, Any]:
        compared, images = self.comparison, self.target.images
        gain, gap = compared.gain, compared.gap
        known = SCRATCH in compared.nats
        arms = {
            arm: {
                **asdict(Estimate.of(nats)),
                "less_scratch": asdict(compared.less(arm, SCRATCH)) if known else None,
                "updates": self.updates[arm],
                "seconds": round(self.seconds[arm], 1),
            }
            for arm, nats in compared.nats.items()
        }
        return {
            "arms": arms,
            "best": compared.best,
            "gain": None if gain is None else asdict(gain),
            "z": None if gain is None or not gain.stderr else gain.value / gain.stderr,
            "embedding_gap": gap and {**asdict(gap), "of": FROZEN, "against": compared.seeing},
            "undecided": compared.undecided,
            "negative_transfer": compared.negative_transfer,
            "verdict": verdict(compared),
            "target": {
                "images": images.source,
                "count": len(images),
                "classes": len(images.classes) if images.labels is not None else 0,
                "digest": images.digest(),
            },
            "protocol": self.protocol,
        }


def recipe_of(question: Arms) -> Transfer:
    """How every arm is trained.

    Raises:
        InstilError: A key or value of the overrides is wrong.
    """
    return load_recipe(Transfer, None, question.overrides, Path())


def cross_validate(
    instructor: Instructor,
    images: data.Images,
    question: Arms,
    recipe: Transfer,
    accelerator: Accelerator,
) -> CrossValidation:
    """Fit every arm to all folds but one, and score it on that one, for each fold.

    Args:
        instructor: The source; its denoiser and codec are moved to the accelerator's device.
        images: The target.
        question: Arms, folds, draws and seed.
        recipe: How every arm is trained.
        accelerator: Device and precision.

    Raises:
        InstilError: The images do not fit the instructor, are too few, or it was trained on them.
    """
    source, seed = instructor.denoiser, question.seed
    target = _target(instructor, images, question, accelerator)
    count = len(target.samples)
    folds = question.folds or folds_for(count)
    strata = target.condition.get("label")
    parts = folds_of(count, folds, seed, strata)
    low, high = max(recipe.lowest, source.sigma_min), min(HIGHEST, source.sigma_max)
    levels = source.round_sigma(noise_levels(low, high)).unique()
    losses: dict[str, Losses] = {}
    updates: dict[str, list[int]] = {arm: [] for arm in question.arms}
    seconds: dict[str, float] = {}
    for arm in question.arms:

        def fit(rows: Tensor, arm: Arm = arm) -> Any:
            model, number = adapt(source, target, arm, recipe, accelerator, rows)
            updates[arm].append(number)
            note(f"{arm}: fold {len(updates[arm])} of {folds}, best after {number} updates")
            return model

        began = time.perf_counter()
        losses[arm] = cross_fitted(
            fit,
            target.samples,
            levels,
            folds=folds,
            condition=target.condition,
            strata=strata,
            seed=seed,
            noise_draws=question.draws,
            device=accelerator.device,
        )
        seconds[arm] = time.perf_counter() - began
    nats = {arm: contributions(each.model) for arm, each in losses.items()}
    protocol = (
        f"{instructor.card.source} on {count} images of {images.source}: {folds} folds, held-out "
        f"nats from sigma {low:g} to {high:g}, {question.draws} noise draws"
    )
    return CrossValidation(Comparison(nats, parts), losses, updates, seconds, target, protocol)


def refit(
    instructor: Instructor,
    result: CrossValidation,
    recipe: Transfer,
    accelerator: Accelerator,
    folder: Path,
    command: str,
) -> None:
    """Fit the winner to all images, for the median number of updates of its folds, and save it."""
    arm: Any = result.comparison.best
    number = round(statistics.median(result.updates[arm]))
    source, target = instructor.denoiser, result.target
    model, number = adapt(source, target, arm, recipe, accelerator, updates=number)
    save(model, instructor, target, arm, number, folder, command)


def _target(
    instructor: Instructor, images: data.Images, question: Arms, accelerator: Accelerator
) -> Target:
    check_samples(images.pixels)
    images = some(images, question.samples, question.seed)
    seen = card.training_images(instructor.card.folder)
    if seen is not None and seen.shape == images.shape:
        names = images.source, f"the training images of {instructor.card.source}"
        refuse_shared(images.pixels, seen.pixels, *names)
    return Target.of(instructor, images, accelerator.device)
