"""Builds the networks of a run from its recipe: instructor, student, fake score."""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from distill.cost.memory import halve_frozen, recompute_activations
from distill.recipe import FewStep as FewStepRecipe
from distill.recipe import Generator, Recipe
from distill.recipe import OneStep as OneStepRecipe
from distill.trainer import State
from distill.warm_start import warm_start
from instil.base.errors import InstilError
from instructors.denoiser import Denoiser
from instructors.instructor import Instructor
from instructors.lora import Lora
from instructors.low_rank import shared_copy
from instructors.prepare import prepare
from students.compatibility import check_compatible
from students.export import rehearse
from students.few_step import FewStep
from students.load import load as load_student
from students.one_step import OneStep
from students.student import Student

M = TypeVar("M", bound=nn.Module)


def load_instructor(
    recipe: Recipe,
    device: torch.device,
    weights: bool = True,
    instructor: Instructor | Denoiser | None = None,
) -> Instructor:
    """The recipe's instructor: loaded, blended, guided.

    Args:
        recipe: Names it, and what it is conditioned on.
        device: Where networks run.
        weights: False leaves networks on the meta device, with shapes alone.
        instructor: Used instead of what `recipe.instructor` names.

    Raises:
        InstilError: The recipe does not fit the instructor, or its samples are no images.
    """
    source = recipe.instructor if instructor is None else instructor
    if isinstance(source, Denoiser):
        source = Instructor.of(source, recipe.instructor)
    if isinstance(source, Instructor) and not weights:
        source = replace(source, denoiser=_blank(source.denoiser), codec=_blank(source.codec))
    prepared = prepare(
        source,
        recipe.conditioning,
        recipe.blend,
        recipe.side,
        device,
        weights,
        recipe.allow_distilled,
    )
    if recipe.evaluation.clip and not prepared.prior.prompts:
        raise InstilError("evaluation.clip: this instructor has no prompts; leave it out")
    channels, *_ = prepared.codec.image_shape(prepared.denoiser.shape)
    if channels not in (1, 3):
        raise InstilError(
            f"{recipe.instructor}: samples of {channels} channels are no images, and there is no "
            "vae/ beside the network; expected a whole pipeline"
        )
    return prepared


def _blank(module: M) -> M:
    """A copy of a module whose parameters are on the meta device."""
    parameters = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, parameters)


def build(
    recipe: Recipe, instructor: Instructor, fresh: bool = True, student: Student | None = None
) -> State:
    """The state before the first update; arguments and errors are those of `build_networks`."""
    return State.fresh(*build_networks(recipe, instructor, fresh, student), recipe)


def build_networks(
    recipe: Recipe, instructor: Instructor, fresh: bool = True, student: Student | None = None
) -> tuple[Student, Denoiser]:
    """Student and fake score: the fake, and most students, are copies of the instructor.

    Args:
        recipe: Describes both.
        instructor: The network to copy; its memory is arranged as the recipe says.
        fresh: Whether the run starts here, and so from `student.init` and `fake.init`; a resumed
            run does not need these files any more.
        student: Trained, in place, instead of what `recipe.student` describes.

    Raises:
        InstilError: The recipe does not fit the instructor, or the weights it names do not fit,
            or the student could not be exported.
    """
    denoiser = instructor.denoiser
    if student is None:
        student = _student(recipe, denoiser)
    else:
        student = _adopted(student, denoiser, type(student).__name__)
    fake = copy_of(denoiser, recipe.fake.lora, recipe.train.seed, "fake.lora")
    if recipe.fake.guidance != 1:
        try:
            fake.null(1)
        except ValueError as error:
            raise InstilError(f"fake.{error}") from None
    if fresh and isinstance(recipe.student, OneStepRecipe) and recipe.student.init:
        warm_start(student, recipe.student.init, "student")
    if fresh and recipe.fake.init:
        warm_start(fake, recipe.fake.init, "fake")
    if recipe.train.frozen == "bf16" and recipe.train.precision == "no":
        raise InstilError("train.frozen: bf16 needs train.precision=bf16")
    for module in (denoiser, fake, student):
        if recipe.train.frozen == "bf16":
            halve_frozen(module)
        if recipe.train.checkpointing:
            recompute_activations(module)  # so does `train`; a network that cannot is refused here
    rehearse(student, instructor.card.folder)
    return student, fake


def _student(recipe: Recipe, instructor: Denoiser) -> Student:
    """The student that the recipe describes."""
    described = recipe.student
    if isinstance(described, OneStepRecipe | FewStepRecipe):
        copied = copy_of(instructor, described.lora, recipe.train.seed, "student.lora")
        if isinstance(described, OneStepRecipe):
            return OneStep(copied, described.sigma)
        return FewStep(copied, described.sigmas).train()
    if not isinstance(described, Generator):
        raise InstilError(f"student: a {type(described).__name__} is not known to distill")
    return _adopted(load_student(described), instructor, described.weights)


def _adopted(student: Student, instructor: Denoiser, name: str) -> Student:
    """A generator that was not copied from the instructor, ready for training."""
    device = next(instructor.parameters()).device
    student = student.to(device).requires_grad_(True)
    if device.type != "meta":  # a plan's instructor makes no images to compare with
        check_compatible(student, instructor, name)
    return student.train()  # running statistics follow as they did


def full_copy(instructor: Denoiser) -> Denoiser:
    """A trainable copy of the instructor's bare network, in eval mode: no dropout anywhere."""
    return copy.deepcopy(instructor.base()).eval().requires_grad_(True)


def copy_of(instructor: Denoiser, lora: Lora | None, seed: int, key: str) -> Denoiser:
    """A fake score or a student before training: a full copy, or adapters on shared weights.

    Args:
        instructor: The network to copy.
        lora: The adapters; None for a full copy.
        seed: The seed of the adapters' initial weights.
        key: The recipe's key, for messages.

    Raises:
        InstilError: The adapters do not fit the network; see `shared_copy`.
    """
    return shared_copy(instructor, lora, seed, key) if lora else full_copy(instructor)
