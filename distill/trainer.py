"""The distillation loop: `train` is a generator that yields after each student update."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._functorch import config
from torch.optim import Optimizer

from distill.cost.memory import recompute_activations
from distill.divergences import Divergence
from distill.recipe import Method
from instil.base.average import Average
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.levels import Levels
from instil.base.runs.run import Report
from instil.base.shapes import expand
from instructors.adapters.guidance import Guided
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Condition, Denoiser
from instructors.training.denoising import denoising_loss
from students.gan.generator import GAN
from students.student import Student


@dataclass
class State:
    """Everything a run carries over a restart, and nothing else.

    There is no random state: each number is a function of (seed, step, stream, sample).

    Attributes:
        student: The generator being trained.
        averages: EMAs of the student; the best one is exported.
        fake: The fake score: a denoiser being trained on the student's samples.
        student_optimizer: The student's optimizer.
        fake_optimizer: The fake score's optimizer.
        step: Student updates done.
    """

    student: Student
    averages: list[Average[Student]]
    fake: Denoiser
    student_optimizer: Optimizer
    fake_optimizer: Optimizer
    step: int = 0

    @classmethod
    def fresh(cls, student: Student, fake: Denoiser, method: Method) -> "State":
        """The state before the first update."""
        train = method.train
        device = "cpu" if train.averages_on == "cpu" else None
        return cls(
            student,
            [Average(student, half, train.rampup, device) for half in train.averages],
            fake,
            method.optimizer.build(student),
            method.fake.optimizer.build(fake),
        )

    def modules(self) -> dict[str, nn.Module]:
        """The modules of a checkpoint, by file name."""
        averages = {f"average-{each.name}": each.module for each in self.averages}
        return {"student": self.student, "fake": self.fake, **averages}

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of a checkpoint, by file name."""
        return {"student-optimizer": self.student_optimizer, "fake-optimizer": self.fake_optimizer}


class Engine(Protocol):
    """The part of an Accelerator that the loop uses."""

    @property
    def device(self) -> torch.device: ...
    @property
    def num_processes(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    def prepare_model(self, model: nn.Module) -> nn.Module: ...
    def autocast(self) -> AbstractContextManager[Any]: ...
    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor, **kwargs: Any) -> None: ...


@dataclass(frozen=True)
class _Batch:
    """One micro-batch, kept for the fake's further updates."""

    draws: Draws
    sample: Tensor  # detached
    condition: Condition


def train(
    state: State,
    instructor: Denoiser,
    method: Method,
    accelerator: Engine,
    prior: Prior | None = None,
) -> Iterator[Report]:
    """Alternate updates of student and fake until `method.train.steps`.

    First the fake score warms up. Each update: joint passes over the micro-batches, then both
    optimizers, then the fake's further updates on the same samples, then the averages. It yields
    when `state` may be saved.

    Args:
        state: Changed in place.
        instructor: Frozen; never prepared by Accelerate.
        method: The recipe of the loop.
        accelerator: The only distributed engine.
        prior: The conditions the student is trained under; None for class labels, equally often.

    Yields:
        A report per student update.
    """
    prior = (prior or labels(state.student.classes)).to(accelerator.device)
    loop = _Loop(state, instructor, method, accelerator, prior)
    if state.step == 0:
        for number in range(method.fake.warmup):
            with loop.compiling():
                loop.warm(number)
    while state.step < method.train.steps:
        with loop.compiling():
            report = loop.update()
        yield report


class _Loop:
    """The wrapped modules and what an update needs.

    A wrapped module is called only in the update that trains it: DDP synchronises gradients of no
    other call.
    """

    def __init__(
        self,
        state: State,
        instructor: Denoiser,
        method: Method,
        accelerator: Engine,
        prior: Prior,
    ) -> None:
        self.state, self.instructor, self.method = state, instructor, method
        self.accelerator, self.prior = accelerator, prior
        for module in (state.student, state.fake, instructor):
            _arrange(module, method)
        self.student: nn.Module = accelerator.prepare_model(state.student)
        self.fake: nn.Module = accelerator.prepare_model(state.fake)
        # The fake as the divergence sees it; never wrapped, since that call trains nothing.
        guidance = method.fake.guidance
        self.judge = state.fake if guidance == 1 else Guided(state.fake, guidance)
        self.batch = micro_batch(method, accelerator.num_processes)

    def compiling(self) -> AbstractContextManager[Any]:
        """The setting of torch.compile that an update needs; put back after it.

        The shared forward of a divergence with a Jacobian is walked backwards twice, so its buffers
        may not be given away.
        """
        donated = not self.method.divergence.jacobian
        return config.patch(donated_buffer=donated)

    def warm(self, number: int) -> None:
        """Update `number` of the fake score's warm-up: samples of the student as it starts."""
        count = self.method.train.accumulation
        for part in range(count):
            draws = self._draws(part, step=-1 - number)
            condition = self.prior.draw(draws)
            with torch.no_grad(), self.accelerator.autocast():
                sample = self.state.student(self.state.student.prior(draws), condition)
            with self._no_sync(part < count - 1):
                self._fake_pass(_Batch(draws, sample, condition), "warmup")
        self._update_fake(number - self.method.fake.warmup)

    def update(self) -> Report:
        state, method, step = self.state, self.method, self.state.step
        count = method.train.accumulation
        batches, parts = [], []
        for number in range(count):
            with self._no_sync(number < count - 1):
                batch, loss = self._joint_pass(number)
            batches.append(batch)
            parts.append(loss)
        steps = method.train.steps
        student_norm = method.optimizer.update(state.student_optimizer, step, steps)
        fake_norm = self._update_fake(step)
        for again in range(1, method.fake.updates):
            for number, batch in enumerate(batches):
                with self._no_sync(number < count - 1):
                    self._fake_pass(batch, f"fake-{again}")
            fake_norm = torch.maximum(fake_norm, self._update_fake(step))
        state.step += 1
        for average in state.averages:
            average.update(state.student, state.step * method.train.batch, method.train.batch)
        student_loss, fake_loss = (torch.stack(each).mean() for each in zip(*parts, strict=True))
        losses = {"student": student_loss, "fake": fake_loss}
        return Report(state.step, losses, student_norm + fake_norm)

    def _joint_pass(self, number: int) -> tuple[_Batch, tuple[Tensor, Tensor]]:
        """Gradients of student and fake on one micro-batch; returns it and both mean losses."""
        state, method, divergence = self.state, self.method, self.method.divergence
        draws = self._draws(number)
        condition = self.prior.draw(draws)
        with self.accelerator.autocast():
            sample = self.student(state.student.prior(draws), condition)
        batch = _Batch(draws, sample.detach(), condition)
        leaf = batch.sample.clone().requires_grad_(divergence.jacobian)
        noisy, sigma = self._noised(leaf, draws, method.levels, "divergence")
        with self.accelerator.autocast():
            if method.fake.shared:  # one forward serves the divergence and the fake's loss
                fake_denoised = self.fake(noisy, sigma, condition)
            else:
                with torch.set_grad_enabled(divergence.jacobian):
                    fake_denoised = self.judge(noisy, sigma, condition)
            with torch.set_grad_enabled(divergence.jacobian):
                instructor_denoised = self.instructor(noisy, sigma, condition)
        # A shared forward of the fake is walked back through again for its own gradient.
        again = method.fake.shared and divergence.jacobian
        loss, gradient = _gradient(
            divergence, leaf, sigma, instructor_denoised, fake_denoised, again
        )
        if method.fake.shared:
            fake_loss = self._fake_backward(fake_denoised, batch.sample, sigma)
        else:
            fake_loss = self._fake_pass(batch, "fake-0")
        scale = len(sample) * method.train.accumulation
        self.accelerator.backward(sample, gradient=gradient / scale)
        return batch, (loss.mean(), fake_loss)

    def _fake_pass(self, batch: _Batch, stream: str) -> Tensor:
        """Denoise the samples under noise of their own; returns the mean loss."""
        recipe, condition = self.method.fake, batch.condition
        levels = recipe.levels or self.method.levels
        noisy, sigma = self._noised(batch.sample, batch.draws, levels, stream)
        if recipe.guidance != 1:
            dropped = batch.draws.uniform(f"{stream}-drop") < recipe.drop
            condition = condition.where(~dropped, self.state.fake.null(len(sigma)))
        with self.accelerator.autocast():
            denoised = self.fake(noisy, sigma, condition)
        return self._fake_backward(denoised, batch.sample, sigma)

    def _fake_backward(self, denoised: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the denoising loss to the fake's parameters; returns the mean loss."""
        loss = denoising_loss(denoised, sample, self.state.fake.weight(sigma)).mean()
        self.accelerator.backward(loss / self.method.train.accumulation)
        return loss.detach()

    def _update_fake(self, step: int) -> Tensor:
        """Step the fake's optimizer; its schedule counts the warm-up, `step` < 0, as well."""
        method, before = self.method, self.method.fake.warmup
        return method.fake.optimizer.update(
            self.state.fake_optimizer, before + step, before + method.train.steps
        )

    def _draws(self, number: int, step: int | None = None) -> Draws:
        """The random numbers of this process's micro-batch `number`; of this update if None."""
        block = self.accelerator.process_index * self.method.train.accumulation + number
        return Draws.of_range(
            self.method.train.seed,
            self.state.step if step is None else step,
            block * self.batch,
            self.batch,
            self.accelerator.device,
        )

    def _noised(
        self, sample: Tensor, draws: Draws, levels: Levels, stream: str
    ) -> tuple[Tensor, Tensor]:
        """Sample + sigma * noise, and sigma (B,)."""
        uniform = draws.uniform(f"{stream}-sigma").to(sample.dtype)
        sigma = levels.sample(uniform, self.instructor.sigma_min, self.instructor.sigma_max)
        sigma = self.instructor.round_sigma(sigma)
        noise = draws.normal(f"{stream}-noise", tuple(sample.shape[1:]), sample.dtype)
        return sample + expand(sigma, sample) * noise, sigma

    def _no_sync(self, active: bool) -> ExitStack:
        """Between micro-batches processes do not exchange gradients."""
        stack = ExitStack()
        for module in (self.student, self.fake) if active else ():
            stack.enter_context(self.accelerator.no_sync(module))
        return stack


def micro_batch(method: Method, processes: int) -> int:
    """Images per micro-batch of one process.

    Raises:
        InstilError: The batch does not divide evenly.
    """
    parts = processes * method.train.accumulation
    if method.train.batch % parts:
        raise InstilError(
            f"train.batch: {method.train.batch} does not divide into {processes} process(es) "
            f"x {method.train.accumulation} micro-batch(es); choose a multiple of {parts}"
        )
    return method.train.batch // parts


def _arrange(module: nn.Module, method: Method) -> None:
    """Memory and compilation of the networks inside a student or denoiser, in place."""
    if method.train.checkpointing:
        recompute_activations(module)
    if method.train.channels_last:
        module.to(memory_format=torch.channels_last)
    if method.train.compile:
        for part in module.modules():
            if isinstance(part, Denoiser | GAN) and part.network is not None:
                part.network.compile()


def _gradient(
    divergence: Divergence,
    leaf: Tensor,
    sigma: Tensor,
    instructor: Tensor,
    fake: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Loss per sample (B,) and its gradient at the samples (B, *shape); may keep the graph."""
    if not divergence.jacobian:
        leaf, fake = leaf.clone().requires_grad_(), fake.detach()
    loss = divergence(leaf, sigma, instructor, fake)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=keep)
    return loss.detach(), gradient
