"""From a recipe to the networks of a run: instructor, student, fake score."""

import copy

import torch

from distill.cost.memory import halve_frozen, recompute_activations
from distill.recipe import FewStep as FewStepRecipe
from distill.recipe import Generator, Recipe
from distill.recipe import OneStep as OneStepRecipe
from distill.trainer import State
from distill.warm_start import warm_start
from instil.base.errors import InstilError
from instructors.denoiser import Denoiser
from instructors.load import Instructor
from instructors.lora import Lora
from instructors.low_rank import shared_copy
from instructors.prepare import prepare
from students.few_step import FewStep
from students.gan.compatibility import check
from students.load import load as load_student
from students.one_step import OneStep
from students.student import Student


def build(recipe: Recipe, instructor: Instructor, fresh: bool = True) -> State:
    """The state before the first update; arguments and errors are those of `networks`."""
    return State.fresh(*networks(recipe, instructor, fresh), recipe)


def networks(
    recipe: Recipe, instructor: Instructor, fresh: bool = True
) -> tuple[Student, Denoiser]:
    """Student and fake score: the fake, and most students, are copies of the instructor.

    Args:
        recipe: What to build.
        instructor: What to copy.
        fresh: Whether the state starts a run, and so from `student.init` and `fake.init`; a
            resumed run does not need these files any more.

    Raises:
        InstilError: The recipe does not fit the instructor, or the weights named in it do not.
    """
    student = _student(recipe, instructor)
    fake = copy_of(instructor.denoiser, recipe.fake.lora, recipe.train.seed, "fake.lora")
    if recipe.fake.guidance != 1:
        try:
            fake.null(1)
        except ValueError as error:
            raise InstilError(f"fake.{error}") from None
    if fresh and isinstance(recipe.student, OneStepRecipe) and recipe.student.init:
        warm_start(student, recipe.student.init, "student")
    if fresh and recipe.fake.init:
        warm_start(fake, recipe.fake.init, "fake")
    parts = (instructor.denoiser, fake, student)
    if recipe.train.frozen == "bf16":
        if recipe.train.precision == "no":
            raise InstilError("train.frozen: bf16 needs train.precision=bf16")
        for each in parts:
            halve_frozen(each)
    if recipe.train.checkpointing:  # the trainer does it again; here it is refused in time
        for each in parts:
            recompute_activations(each)
    return student, fake


def prepared(recipe: Recipe, device: torch.device, weights: bool = True) -> Instructor:
    """The recipe's instructor; without weights, its shapes alone, on the meta device.

    Raises:
        InstilError: The recipe does not fit it, or its samples cannot be seen.
    """
    found = prepare(
        recipe.instructor, recipe.conditioning, recipe.blend, recipe.side, device, weights
    )
    if recipe.evaluation.clip and not found.prior.prompts:
        raise InstilError("evaluation.clip: this instructor has no prompts; leave it out")
    channels, *_ = found.codec.image_shape(found.denoiser.shape)
    if channels not in (1, 3):
        raise InstilError(
            f"{recipe.instructor}: samples of {channels} channels are no images, and there is no "
            "vae/ beside the network; expected a whole pipeline"
        )
    return found


def _student(recipe: Recipe, instructor: Instructor) -> Student:
    what = recipe.student
    if isinstance(what, OneStepRecipe | FewStepRecipe):
        mine = copy_of(instructor.denoiser, what.lora, recipe.train.seed, "student.lora")
        if isinstance(what, OneStepRecipe):
            return OneStep(mine, what.sigma)
        return FewStep(mine, what.sigmas).train()
    if not isinstance(what, Generator):
        raise InstilError(f"student: a {type(what).__name__} is not known to distill")
    device = next(instructor.denoiser.parameters()).device
    student = load_student(what).to(device)
    if device.type != "meta":  # a plan's instructor makes no images to compare with
        check(student, instructor.denoiser, what.weights)
    return student.requires_grad_(True).train()  # running statistics follow as they did


def full_copy(instructor: Denoiser) -> Denoiser:
    """A trainable copy of the instructor's bare network, in eval mode: no dropout anywhere."""
    return copy.deepcopy(instructor.base()).eval().requires_grad_(True)


def copy_of(instructor: Denoiser, lora: Lora | None, seed: int, key: str) -> Denoiser:
    """What a fake score, or a student, starts from: a full copy, or adapters on shared weights.

    Args:
        instructor: Copied.
        lora: The adapters; None for a full copy.
        seed: Of the adapters.
        key: Of the recipe, for messages.

    Raises:
        InstilError: As `shared_copy`.
    """
    return shared_copy(instructor, lora, seed, key) if lora else full_copy(instructor)
