"""The loop of the Diff-Instruct authors' code, restated from its description for comparison.

Per student update: generate, denoise and step the fake; generate again, evaluate fake and
instructor without gradients, step the student. Gradients are cleared of NaN one parameter at a
time, the average is a loop over parameters, everything runs in float32: 9 forward-equivalents.
"""

import copy

import torch

from instil.base.draws import Draws
from instil.base.levels import LogNormal
from instil.base.shapes import expand
from instructors.conditions.prior import Prior, labels
from instructors.denoiser import Denoiser
from instructors.training.denoising import denoising_loss
from students.one_step import OneStep


class AuthorsLoop:
    """State and update of that loop.

    Args:
        instructor: Frozen.
        batch: Images per update.
        lr: Of both Adams.
        prior: What is asked for; None for class labels.
    """

    def __init__(
        self, instructor: Denoiser, batch: int, lr: float = 1e-5, prior: Prior | None = None
    ) -> None:
        self.instructor, self.batch, self.step = instructor, batch, 0
        self.fake = copy.deepcopy(instructor).requires_grad_(True)
        self.student = OneStep(copy.deepcopy(instructor).requires_grad_(True), 1.0)
        self.average = copy.deepcopy(self.student)
        self.levels, self.prior = LogNormal(), prior or labels(instructor.classes)
        self.fake_adam, self.student_adam = (
            torch.optim.Adam(module.parameters(), lr=lr, betas=(0.0, 0.999))
            for module in (self.fake, self.student)
        )

    def update(self) -> None:
        """One student update."""
        device = next(self.instructor.parameters()).device
        draws = Draws.of_range(0, self.step, 0, self.batch, device)
        condition = self.prior.to(device).draw(draws)
        with torch.no_grad():
            sample = self.student((draws.normal("latent-0", self.student.shape),), condition)
        noisy, sigma = self._noised(sample, draws, "0")
        loss = denoising_loss(self.fake(noisy, sigma, condition), sample, self.fake.weight(sigma))
        self._descend(loss.mean(), self.fake, self.fake_adam)

        sample = self.student((draws.normal("latent-1", self.student.shape),), condition)
        noisy, sigma = self._noised(sample, draws, "1")
        with torch.no_grad():
            gap = self.fake(noisy, sigma, condition) - self.instructor(noisy, sigma, condition)
        self._descend((gap * sample).flatten(1).sum(1).mean(), self.student, self.student_adam)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.student.parameters(), strict=True)
            for mine, theirs in pairs:
                mine.copy_(theirs.lerp(mine, 0.999))
        self.step += 1

    def _noised(
        self, sample: torch.Tensor, draws: Draws, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        uniform = draws.uniform(f"sigma-{name}").to(sample.dtype)
        sigma = self.levels.sample(uniform, self.instructor.sigma_min, self.instructor.sigma_max)
        noise = draws.normal(f"noise-{name}", self.student.shape)
        return sample + expand(sigma, sample) * noise, sigma

    def _descend(
        self, loss: torch.Tensor, module: torch.nn.Module, adam: torch.optim.Optimizer
    ) -> None:
        adam.zero_grad(set_to_none=True)
        loss.backward()
        # Per parameter and of every gradient, as theirs does: part of what is timed.
        for parameter in module.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        adam.step()
