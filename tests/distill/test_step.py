"""The step against one reference written as plainly as the paper."""

import pytest
import torch
from accelerate.state import AcceleratorState

from distill.recipe import Method
from instil.base.draws import Draws
from instructors.adapters.karras import Karras
from instructors.denoiser import class_labels
from instructors.lora import Lora
from instructors.low_rank import shared_copy
from instructors.mlp import MLP
from students.one_step import OneStep
from tests.tools import ranks, step_driver


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """What `step_driver.py` saved, under one process and two."""
    out = tmp_path_factory.mktemp("steps")
    if request.param == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
        step_driver.main([str(out)])
    else:
        ranks.run(step_driver.__name__, [out], request.param)
    return request.param, out


class PlainAdam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, parameters, settings):
        self.p, self.s, self.t = list(parameters), settings, 0
        self.m = [torch.zeros_like(p) for p in self.p]
        self.v = [torch.zeros_like(p) for p in self.p]

    def step(self, gradients):
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        if self.s.clip and norm > self.s.clip:
            gradients = [g * self.s.clip / (norm + 1e-6) for g in gradients]
        self.t += 1
        b1, b2 = self.s.betas
        for i, (p, g) in enumerate(zip(self.p, gradients, strict=True)):
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            m, v = self.m[i] / (1 - b1**self.t), self.v[i] / (1 - b2**self.t)
            p.data -= self.s.lr * m / (v.sqrt() + self.s.eps)


def reference(student, fake, instructor, method):
    """Generate, follow the gap of the scores, denoise; one whole batch, every pass on its own.

    Returns the student's average.
    """
    average = {key: value.clone() for key, value in student.state_dict().items()}
    student_adam = PlainAdam(student.parameters(), method.optimizer)
    trained = [parameter for parameter in fake.parameters() if parameter.requires_grad]
    fake_adam = PlainAdam(trained, method.fake.optimizer)
    own = method.fake.levels
    for step in range(method.train.steps):
        draws = Draws.of_range(method.train.seed, step, 0, method.train.batch)
        c = class_labels(2, draws.integers("label", 2))

        def levels(stream, law, draws=draws):
            sigma = law.sample(draws.uniform(f"{stream}-sigma"), 0.01, 20.0)
            return sigma, draws.normal(f"{stream}-noise", (3,), torch.float64)

        def fake_gradient(x, sigma, noise, c=c):
            loss = fake.weight(sigma) * (
                fake(x + sigma[:, None] * noise, sigma, c) - x
            ).square().sum(1)
            return torch.autograd.grad(loss.mean(), trained)

        x = student(student.prior(draws), c)
        sigma, noise = levels("divergence", method.levels)
        noisy = x + sigma[:, None] * noise
        with torch.set_grad_enabled(method.divergence.jacobian):
            t, f = instructor(noisy, sigma, c), fake(noisy, sigma, c)
        loss = method.divergence(x, sigma, t, f)
        student_gradient = torch.autograd.grad(loss.mean(), list(student.parameters()))
        x = x.detach()
        first = (sigma, noise) if own is None else levels("fake-0", own)
        first_gradient = fake_gradient(x, *first)
        student_adam.step(student_gradient)
        fake_adam.step(first_gradient)
        for again in range(1, method.fake.updates):
            fake_adam.step(fake_gradient(x, *levels(f"fake-{again}", own or method.levels)))
        seen = (step + 1) * method.train.batch
        keep = 0.5 ** (method.train.batch / min(*method.train.averages, method.train.rampup * seen))
        for key, value in student.state_dict().items():
            average[key] = keep * average[key] + (1 - keep) * value
    return average


def network(state):
    built = Karras(MLP(3, width=8, depth=1, classes=2).double(), (3,), 0.01, 20.0, 1.0, classes=2)
    built.load_state_dict(state)
    return built


@pytest.mark.parametrize(("kind", "shared", "accumulation", "updates"), step_driver.SETTINGS)
def test_the_step_is_the_papers(trained, kind, shared, accumulation, updates):
    saved, start = read(trained, f"{kind}-{shared}-{accumulation}-{updates}")
    compare(saved, network(start), network(saved["instructor"]))


@pytest.mark.parametrize(("kind", "shared", "accumulation", "updates"), step_driver.WITH_ADAPTERS)
def test_the_step_is_the_papers_with_adapters(trained, kind, shared, accumulation, updates):
    saved, start = read(trained, f"{kind}-{shared}-{accumulation}-{updates}-lora")
    instructor = network(saved["instructor"]).requires_grad_(False)
    fake = shared_copy(instructor, Lora(rank=2, alpha=3), 0, "fake.lora")
    fake.load_state_dict(start)
    compare(saved, fake, instructor)


def read(trained, name):
    """What was saved under a setting, and the fake's weights before."""
    processes, folder = trained
    saved = torch.load(folder / f"{name}.pt")
    assert saved["processes"] == processes
    return saved, saved["before"][1]


def compare(saved, fake, instructor):
    """Hold what was trained to the reference."""
    before = saved["before"][0]
    student = OneStep(network({k.removeprefix("denoiser."): v for k, v in before.items()}), 1.5)
    average = reference(student, fake, instructor, Method.model_validate_json(saved["method"]))
    wanted = (student.state_dict(), fake.state_dict(), average)
    for found, expected in zip((*saved["after"], saved["average"]), wanted, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    moved = (
        saved["after"][0]["denoiser.network.enter.weight"] - before["denoiser.network.enter.weight"]
    )
    assert moved.abs().max() > 1e-4
