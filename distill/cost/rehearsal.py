"""Counts the bytes of an update on tensors that have a shape and no values.

One update of the real loop runs under torch's fake tensors. Every operation allocates as usual and
computes nothing, so a network of billions of parameters takes a minute and no memory. Memory inside
kernels, gaps between an allocator's blocks, and the driver's own memory are not counted.
"""

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from distill.build import build_networks, load_instructor
from distill.cost.alive import REST, Alive
from distill.recipe import Recipe
from distill.trainer import State, train
from instil.base.optimizer import trained
from instructors.denoiser import Denoiser
from instructors.load import Instructor
from students.student import Student

CPU = torch.device("cpu")
PARTS = (
    *("instructor", "codec", "student", "fake score", "averages", "gradients", "moments"),
    *("activations", REST),
)


@dataclass(frozen=True)
class OneProcess:
    """The `distill.trainer.Engine` of one process, in a process that may be one of several."""

    half: bool  # whether autocast is to bfloat16
    device: torch.device = CPU
    num_processes: int = 1
    process_index: int = 0

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, self.half)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext(model)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        loss.backward(**kwargs)


class Rehearsal:
    """A run without values: counts the bytes of an update at any size of the micro-batch.

    Args:
        recipe: The run's recipe; only configurations of its instructor are read.
        instructor: Used instead of what `recipe.instructor` names; left as it is.
        student: Used instead of what `recipe.student` describes; left as it is.

    Attributes:
        instructor: The recipe's instructor, without values.
        state: The state before the first update.

    Raises:
        InstilError: The recipe does not fit the instructor.
    """

    def __init__(
        self,
        recipe: Recipe,
        instructor: Instructor | Denoiser | None = None,
        student: Student | None = None,
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.instructor = load_instructor(recipe, CPU, weights=False, instructor=instructor)
        student, fake = build_networks(recipe, self.instructor, False, copy.deepcopy(student))
        known: dict[Tensor, Any] = {}
        for module in (self.instructor.denoiser, self.instructor.codec, student, fake):
            drop_values(module, self.mode, known)
        # Without settings that change no bytes, and further fake updates, which need fewer.
        self.recipe = recipe.replace(
            train=recipe.train.replace(compile=False, channels_last=False),
            optimizer=recipe.optimizer.replace(bits=32),
            fake=recipe.fake.replace(
                updates=1, warmup=0, optimizer=recipe.fake.optimizer.replace(bits=32)
            ),
        )
        with warnings.catch_warnings():  # to copy a tensor, torch asks where its values lie
            warnings.simplefilter("ignore")
            self.state = State.fresh(student, fake, self.recipe)
        if recipe.train.averages_on == "cpu":
            self.state.averages.clear()
        self.eight_bits = sum(
            parameter.numel()
            for module, adam in ((student, recipe.optimizer), (fake, recipe.fake.optimizer))
            for parameter in trained(module)
            if adam.bits == 8
        )
        self._counted: dict[tuple[int, bool], dict[str, int]] = {}

    def update(self, images: int, first: bool) -> dict[str, int]:
        """Bytes of each of `PARTS` when an update needs most.

        Args:
            images: The size of the micro-batch.
            first: Whether it is the update's first; later ones find gradients of earlier ones.
        """
        if (images, first) not in self._counted:
            self._counted[images, first] = self._update(images, first)
        return dict(self._counted[images, first])

    def _update(self, images: int, first: bool) -> dict[str, int]:
        state, recipe, alive = self.state, self.recipe, Alive()
        method = recipe.replace(train=recipe.train.replace(batch=images, accumulation=1))
        alone = OneProcess(recipe.train.precision == "bf16")
        state.step = 0

        def save(tensor: Tensor) -> Tensor:
            alive.name("activations", [tensor])
            return tensor

        def accumulated(parameter: Tensor) -> None:
            alive.name("gradients", [parameter.grad] if parameter.grad is not None else [])

        hooks = []
        with self.mode, alive, saved_tensors_hooks(save, lambda tensor: tensor):
            for part, module in self._modules():
                alive.name(part, [*module.parameters(), *module.buffers()])
            for module, optimizer in (
                (state.student, state.student_optimizer),
                (state.fake, state.fake_optimizer),
            ):
                for parameter in trained(module):
                    hooks.append(parameter.register_post_accumulate_grad_hook(accumulated))
                    parameter.grad = torch.empty_like(parameter)
                    accumulated(parameter)
                if not optimizer.state:
                    optimizer.step()  # makes the moments
                for moments in optimizer.state.values():
                    alive.name("moments", moments.values())
                if first:
                    optimizer.zero_grad()
            next(train(state, self.instructor.denoiser, method, alone, self.instructor.prior))
        for hook in hooks:
            hook.remove()
        parts = {part: alive.most[part] for part in PARTS}
        # bitsandbytes: each moment a byte for four, and a scale of four bytes for every 256
        parts["moments"] -= round(self.eight_bits * 2 * (3 - 4 / 256))
        return parts

    def _modules(self) -> list[tuple[str, nn.Module]]:
        """The modules with weights, by part; shared weights belong to the first."""
        state, instructor = self.state, self.instructor
        return [
            ("instructor", instructor.denoiser),
            ("codec", instructor.codec),
            ("student", state.student),
            ("fake score", state.fake),
            *(("averages", average.module) for average in state.averages),
        ]


def drop_values(module: nn.Module, mode: FakeTensorMode, known: dict[Tensor, Any]) -> None:
    """Replace a module's tensors by fake ones, as if on the CPU.

    Args:
        module: Changed in place.
        mode: The mode that owns the fake tensors.
        known: Fake tensors by real ones, over several modules: shared tensors stay shared.
    """
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in known:
                    blank = FakeTensor(mode, tensor.detach().to("meta"), CPU)
                    if isinstance(tensor, nn.Parameter):
                        blank = nn.Parameter(blank, tensor.requires_grad)
                    known[tensor] = blank
                tensors[name] = known[tensor]
