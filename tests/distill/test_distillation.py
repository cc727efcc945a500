"""Whole distillations with a known answer."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from distill.divergences import Divergences
from distill.recipe import Method
from distill.trainer import State, train
from eval.distances import wasserstein2
from instil.base.config.choice import sections
from instil.base.draws import Draws
from instructors.adapters.karras import Karras
from instructors.analytic import gaussian, mixture
from instructors.denoiser import UNCONDITIONAL, Denoiser
from instructors.mlp import MLP
from students.one_step import OneStep
from students.student import Student

MEAN = torch.tensor([1.0, -0.5])
COVARIANCE = torch.tensor([[0.8, 0.3], [0.3, 0.5]])


class Linear(Student):
    """x = W z + b."""

    nfe, classes, shape = 1, 0, (2,)

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 2)

    def prior(self, draws):
        return (draws.normal("latent", (2,)),)

    def forward(self, latent, condition=UNCONDITIONAL):
        return self.map(latent[0])


class GaussianScore(Denoiser):
    """The denoiser of N(mean, root root'), both trained."""

    shape, sigma_min, sigma_max = (2,), 0.002, 80.0

    def __init__(self):
        super().__init__()
        self.mean, self.root = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.eye(2))

    def denoise(self, noisy, sigma, condition):
        covariance = self.root @ self.root.T
        total = covariance + (sigma**2)[:, None, None] * torch.eye(2)
        return (
            self.mean
            + torch.linalg.solve(total, (noisy - self.mean)[..., None])[..., 0] @ covariance
        )

    def weight(self, sigma):
        return 1 + sigma**-2


def method(**changes):
    settings = {
        "optimizer": {"lr": 1e-2, "betas": [0.5, 0.99], "schedule": "linear"},
        "fake": {"optimizer": {"lr": 2e-2, "betas": [0.5, 0.99], "schedule": "linear"}},
        "levels": {"kind": "log_uniform", "sigma_min": 0.05, "sigma_max": 10.0},
        "train": {"steps": 1500, "batch": 256},
    }
    return Method().replace(**settings | changes)


@pytest.mark.parametrize("divergence", sections(Divergences))
def test_a_linear_student_reaches_a_gaussians_mean_and_covariance(divergence):
    settings = method(divergence=divergence, train={"steps": 600, "batch": 256})
    state = State.fresh(Linear(), GaussianScore(), settings)
    for _ in train(state, gaussian(MEAN, COVARIANCE), settings, Accelerator(cpu=True)):
        pass
    weight = state.student.map.weight
    torch.testing.assert_close(state.student.map.bias, MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(weight @ weight.T, COVARIANCE, atol=0.06, rtol=0)
    torch.testing.assert_close(state.fake.mean, state.student.map.bias, atol=0.06, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["dmd", "sid"])
def test_a_mixture_with_separated_modes_is_covered(divergence):
    means = 3 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    law = mixture(torch.ones(4), means, 0.04 * torch.eye(2).expand(4, 2, 2))
    torch.manual_seed(0)
    fake = Karras(MLP(2, width=64), (2,), sigma_data=2.0)
    student = OneStep(Karras(MLP(2, width=64), (2,), sigma_data=2.0), sigma=10.0)
    adam = {"lr": 2e-3, "betas": [0.0, 0.99], "schedule": "linear"}
    settings = method(divergence=divergence, optimizer=adam, fake={"updates": 2, "optimizer": adam})
    state = State.fresh(student, fake, settings)
    for _ in train(state, law, settings, Accelerator(cpu=True)):
        pass
    draws = [Draws.of_range(1, step, 0, 1000) for step in range(3)]
    with torch.no_grad():
        samples = student(student.prior(draws[0]))
    truth = [law.sample(d.normal("z", (2,)), d.uniform("k")) for d in draws]
    floor = wasserstein2(truth[1], truth[2])
    distance = wasserstein2(samples, truth[0])
    nearest = torch.cdist(samples, means).argmin(1)
    share = torch.bincount(nearest, minlength=4) / 1000
    assert share.min() > 0.15, share
    assert distance < floor + 0.4
