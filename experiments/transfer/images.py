"""Transfer on real images: 000.8, from digits 0-4 to few digits 5-9, as they are and disfigured."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor

from eval.answer import Rows
from eval.curves import contributions, denoising_loss_curve, noise_levels
from eval.transfer.compare import SCRATCH, Comparison, verdict
from experiments.experiment import Experiment
from experiments.transfer.laws import Fit, cross_validate
from instil.base import data
from instil.base.draws import Draws
from instil.base.early_stopping import EarlyStopping
from instil.base.optimizer import Adam
from instructors.denoiser import Condition, Denoiser, labelled
from instructors.load import load
from instructors.transfer import Arm
from instructors.transfer.arms import Transfer, begin, fit, trunk
from instructors.transfer.heads import blank, relabelled

Found = tuple[Rows, dict[str, Any]]
LEVELS = noise_levels(0.1, 20)
TRIED: tuple[Arm, ...] = ("scratch", "frozen", "finetune")
LONGER = "scratch, 4 times the updates"


def inverted(pixels: Tensor) -> Tensor:
    """Black for white."""
    return 255 - pixels


def shuffled(pixels: Tensor) -> Tensor:
    """All pixels in one other order: no neighbourhood that a convolution relies on is left."""
    order = Draws.of_range(0, 0, 0, pixels[0].numel()).uniform("pixel").argsort()
    return pixels.flatten(1)[:, order].view_as(pixels)


TARGETS = {"as they are": lambda pixels: pixels, "inverted": inverted, "shuffled": shuffled}


def adapted(arm: Arm, source: Denoiser, images: Tensor, known: Condition, steps: int) -> Denoiser:
    """The source by one arm, for five other classes."""
    recipe = Transfer(
        steps=steps,
        batch=16,
        optimizer=Adam(lr=2e-3, betas=(0.9, 0.99), warmup=20, schedule="cosine", clip=1.0),
        average=250.0,
        stopping=EarlyStopping(every=20, patience=4),
    )
    start = blank(source, 5, seed=0) if arm == SCRATCH else relabelled(source, 5)
    model, anchor = begin(arm, start, lambda: blank(source, 5, seed=0), trunk, recipe.kappa)
    return fit(model, images, known, recipe, Accelerator(cpu=True), anchor)[0].eval()


def nats(model: Denoiser, images: Tensor, known: Condition, draws: int) -> Tensor:
    """(N,) integral of the denoising loss from sigma 0.1."""
    curve = denoising_loss_curve(model, images, LEVELS, condition=known, noise_draws=draws)
    return contributions(curve)


def tried(
    pixels: Tensor, known: Condition, few: Tensor, rest: Tensor, steps: int, folds: int
) -> tuple[Comparison, dict[str, float]]:
    """The arms by cross-validation on few images, and their mean nats on the rest."""
    source = load("digits-0-4").denoiser

    def fitted(arm: Arm, rows: Tensor, steps: int = steps) -> Denoiser:
        return adapted(arm, source, pixels[rows], known.rows(rows), steps)

    def of(arm: Arm) -> Fit:
        def scored(train: Tensor, held_out: Tensor) -> Tensor:
            asked = few[held_out]
            return nats(fitted(arm, few[train]), pixels[asked], known.rows(asked), 4)

        return scored

    arms: dict[str, Fit] = {arm: of(arm) for arm in TRIED}
    found = cross_validate(arms, len(few), folds, strata=known["label"][few])
    models: dict[str, Denoiser] = {arm: fitted(arm, few) for arm in TRIED}
    models[LONGER] = fitted(SCRATCH, few, 4 * steps)
    given = known.rows(rest)
    return found, {
        name: nats(model, pixels[rest], given, 1).mean().item() for name, model in models.items()
    }


def real_images(scale: float) -> Found:
    """000.8."""
    digits = data.load("digits:all:5-9")
    known = labelled(digits.labels)
    order = Draws.of_range(0, 0, 0, len(digits)).uniform("few").argsort()
    steps, folds = max(30, round(120 * scale)), 4 if scale == 1 else 2
    rows, pairs = [], {}
    facts: dict[str, Any] = {}
    for name in TARGETS if scale == 1 else ("as they are", "shuffled"):
        pixels = TARGETS[name](digits.pixels)
        found, truth = tried(pixels, known, order[:40], order[40:140], steps, folds)
        less = {arm: value - truth[SCRATCH] for arm, value in truth.items()}
        for arm in TRIED[1:]:
            alone = Comparison({each: found.nats[each] for each in (SCRATCH, arm)}, found.parts)
            gain = found.less(arm, SCRATCH)
            rows.append(
                {
                    "digits 5-9": name,
                    "arm": arm,
                    "arm - scratch, cross-validated": str(gain),
                    "100 other digits": f"{less[arm]:+.3g}",
                    "says": verdict(alone),
                }
            )
            pairs[name, arm] = alone.undecided or alone.negative_transfer == (less[arm] > 0)
            facts[f"{name}, {arm}"] = {
                "found": gain.value,
                "stderr": gain.stderr,
                "truth": less[arm],
                "negative": alone.negative_transfer,
            }
        longer = {"100 other digits": f"{less[LONGER]:+.3g}"}
        rows.append({"digits 5-9": name, "arm": LONGER} | longer)
        facts[f"{name}, {LONGER}"] = less[LONGER]
        facts[f"{name}: all arms"] = verdict(found)
    harmed, helped = facts["shuffled, frozen"]["negative"], facts["as they are, finetune"]["truth"]
    return rows, facts | {"holds": all(pairs.values()) and harmed and helped < 0}


EXPERIMENTS = {
    "000.8": Experiment(
        "digits 0-4 help a few digits 5-9, and the tool says so where they do not",
        real_images,
        6.0,
    ),
}
