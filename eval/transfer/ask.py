"""Should this instructor be adapted to those images, and how? Arms of a transfer, in nats."""

import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from eval import card
from eval.cross_fitting import Losses, cross_fitted, folds_of
from eval.curves import Estimate, contributions, noise_levels
from eval.image_sets import check_samples, refuse_shared, some
from eval.transfer.compare import SCRATCH, Comparison, folds_for, verdict
from instil.base import data
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instructors.load import Instructor
from instructors.transfer.adapt import Target, adapt, save
from instructors.transfer.arms import ARMS, HIGHEST, Arm, Transfer

DEFAULT: tuple[Arm, ...] = ("scratch", "frozen", "finetune")


@dataclass(frozen=True)
class Question:
    """What is asked, beside instructor and images.

    Attributes:
        arms: To be compared.
        folds: None for 10 below 200 images, 5 from there on.
        samples: Images that are looked at, at most, at random; None for all.
        seed: Of folds, noise and that choice.
        noise_draws: Per image and level.
        recipe: How every arm is trained.
    """

    arms: tuple[Arm, ...] = DEFAULT
    folds: int | None = None
    samples: int | None = None
    seed: int = 0
    noise_draws: int = 2
    recipe: Transfer = field(default_factory=Transfer)

    def check(self) -> None:
        """Refuse what cannot be answered, before anything is loaded.

        Raises:
            InstilError: A value is out of its range.
        """
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise InstilError(
                f"--arms {','.join(self.arms)}: expected some of {','.join(ARMS)}, each once"
            )
        for name, value, least in (
            ("folds", self.folds, 2),
            ("samples", self.samples, 4),
            ("draws", self.noise_draws, 1),
        ):
            if value is not None and value < least:
                raise InstilError(f"--{name} {value}: expected {least} or more")


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        comparison: Of the arms.
        losses: By arm, of models on images they were not trained on, and of the reference.
        updates: By arm and fold, after how many updates the held-out loss was least.
        seconds: By arm.
        target: The images.
        protocol: How it was measured.
    """

    comparison: Comparison
    losses: dict[str, Losses]
    updates: dict[str, list[int]]
    seconds: dict[str, float]
    target: Target
    protocol: str

    def rows(self) -> list[dict[str, str]]:
        """For the table."""
        found = self.comparison
        rows = []
        for arm, nats in found.nats.items():
            compared = arm != SCRATCH and SCRATCH in found.nats
            rows.append(
                {
                    "arm": f"{arm} *" if arm == found.best else arm,
                    "nats": str(Estimate.of(nats)),
                    "less scratch": str(found.less(arm, SCRATCH)) if compared else "",
                    "updates": f"{statistics.median(self.updates[arm]):g}",
                    "seconds": f"{self.seconds[arm]:.0f}",
                }
            )
        return rows

    def facts(self) -> dict[str, Any]:
        """For JSON; every estimate with its standard error."""
        found = self.comparison
        arms = {
            arm: {
                **asdict(Estimate.of(nats)),
                "less_scratch": None
                if SCRATCH not in found.nats
                else asdict(found.less(arm, SCRATCH)),
                "updates": self.updates[arm],
                "seconds": round(self.seconds[arm], 1),
            }
            for arm, nats in found.nats.items()
        }
        gain = found.gain
        images = self.target.images
        return {
            "arms": arms,
            "best": found.best,
            "gain": None if gain is None else asdict(gain),
            "z": None if gain is None or not gain.stderr else gain.value / gain.stderr,
            "undecided": found.undecided,
            "negative_transfer": found.negative_transfer,
            "verdict": verdict(found),
            "target": {
                "images": images.source,
                "count": len(images),
                "classes": len(images.classes) if images.labels is not None else 0,
                "digest": images.digest(),
            },
            "protocol": self.protocol,
        }


def ask(
    instructor: Instructor, images: data.Images, question: Question, accelerator: Accelerator
) -> Answer:
    """Cross-validate the arms on the images; every model is scored on images it has not seen.

    Args:
        instructor: The source; its denoiser and codec are moved to the accelerator's device.
        images: The target.
        question: What is asked.
        accelerator: The only distributed engine.

    Raises:
        InstilError: The images do not fit the instructor, are too few, or it was trained on them.
    """
    question.check()
    device, source = accelerator.device, instructor.denoiser
    target = _target(instructor, images, question, accelerator)
    count, recipe = len(target.samples), question.recipe
    folds = folds_for(count) if question.folds is None else question.folds
    strata = target.condition.get("label")
    parts = folds_of(count, folds, question.seed, strata)
    low, high = max(recipe.lowest, source.sigma_min), min(HIGHEST, source.sigma_max)
    levels = source.round_sigma(noise_levels(low, high)).unique()
    losses: dict[str, Losses] = {}
    updates: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    for arm in question.arms:
        kept: list[int] = []

        def fit(rows: Tensor, arm: Arm = arm, kept: list[int] = kept) -> Any:
            model, number = adapt(source, target, arm, recipe, accelerator, rows)
            kept.append(number)
            note(f"{arm}: fold {len(kept)} of {folds}, best after {number} updates")
            return model

        began = time.perf_counter()
        losses[arm] = cross_fitted(
            fit,
            target.samples,
            levels,
            folds=folds,
            condition=target.condition,
            strata=strata,
            seed=question.seed,
            noise_draws=question.noise_draws,
            device=device,
        )
        updates[arm], seconds[arm] = kept, time.perf_counter() - began
    nats = {arm: contributions(each.model) for arm, each in losses.items()}
    protocol = (
        f"{instructor.card.source} on {count} images of {images.source}: {folds} folds, held-out "
        f"nats from sigma {low:g} to {high:g}, {question.noise_draws} noise draws"
    )
    return Answer(Comparison(nats, parts), losses, updates, seconds, target, protocol)


def refit(
    instructor: Instructor,
    answer: Answer,
    question: Question,
    accelerator: Accelerator,
    folder: Path,
    command: str,
) -> None:
    """Fit the winner to all images, for the median number of updates of its folds, and save it."""
    arm: Any = answer.comparison.best
    number = round(statistics.median(answer.updates[arm]))
    model, number = adapt(
        instructor.denoiser, answer.target, arm, question.recipe, accelerator, updates=number
    )
    save(model, instructor, answer.target, arm, number, folder, command)


def _target(
    instructor: Instructor, images: data.Images, question: Question, accelerator: Accelerator
) -> Target:
    check_samples(images.pixels)
    images = some(images, question.samples, question.seed)
    seen = card.training_images(instructor.card.folder)
    if seen is not None and seen.shape == images.shape:
        names = images.source, f"the training images of {instructor.card.source}"
        refuse_shared(images.pixels, seen.pixels, *names)
    return Target.of(instructor, images, accelerator.device)
