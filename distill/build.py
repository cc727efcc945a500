"""From a recipe to the networks of a run: instructor, student, fake score."""

import torch

from distill.fake_score import full_copy
from distill.recipe import FewStep as FewStepRecipe
from distill.recipe import OneStep as OneStepRecipe
from distill.recipe import Recipe
from distill.trainer import State
from distill.warm_start import warm_start
from instil.errors import InstilError
from instructors.load import Instructor
from instructors.prepare import prepare
from students.few_step import FewStep
from students.load import check
from students.load import load as load_student
from students.one_step import OneStep
from students.student import Student


def build(recipe: Recipe, instructor: Instructor, fresh: bool = True) -> State:
    """The state before the first update: the fake, and most students, are copies of the instructor.

    Args:
        recipe: What to build.
        instructor: What to copy.
        fresh: Whether the state starts a run, and so from `student.init` and `fake.init`; a
            resumed run does not need these files any more.

    Raises:
        InstilError: The recipe does not fit the instructor, or the weights named in it do not.
    """
    student = _student(recipe, instructor)
    fake = full_copy(instructor.denoiser)
    if recipe.fake.guidance != 1:
        try:
            fake.null(1)
        except ValueError as error:
            raise InstilError(f"fake.{error}") from None
    if fresh and isinstance(recipe.student, OneStepRecipe) and recipe.student.init:
        warm_start(student, recipe.student.init, "student")
    if fresh and recipe.fake.init:
        warm_start(fake, recipe.fake.init, "fake")
    return State.fresh(student, fake, recipe)


def prepared(recipe: Recipe, device: torch.device) -> Instructor:
    """The recipe's instructor.

    Raises:
        InstilError: The recipe does not fit it, or its samples cannot be seen.
    """
    found = prepare(recipe.instructor, recipe.conditioning, recipe.blend, recipe.side, device)
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
    if isinstance(what, OneStepRecipe):
        return OneStep(full_copy(instructor.denoiser), what.sigma)
    if isinstance(what, FewStepRecipe):
        return FewStep(full_copy(instructor.denoiser), what.sigmas).train()
    student = load_student(what).to(next(instructor.denoiser.parameters()).device)
    check(student, instructor.denoiser, what.weights)
    return student.requires_grad_(True).train()  # running statistics follow as they did
