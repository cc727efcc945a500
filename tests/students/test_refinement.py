"""Refinement: the warm-up, a linear generator that reaches a Gaussian, the best that is kept."""

import copy

import pytest
import torch
from accelerate import Accelerator

from distill.recipe import Method
from distill.trainer import State, train
from distill.watch.best import Best
from instil.base.draws import Draws
from instructors.adapters.karras import Karras
from instructors.analytic import gaussian
from instructors.mlp import MLP
from students.gan.generator import GAN


def linear(seed=0):
    """x = A z + b, a GAN whose law is N(b, A A')."""
    torch.manual_seed(seed)
    return GAN("torch.nn:Linear", {"in_features": 2, "out_features": 2}, latent=(2,)).train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_warm_up_is_denoising_of_the_starts_samples(accumulation):
    warmup, batch = 5, 8
    student = linear().double()
    torch.manual_seed(1)
    fake = Karras(MLP(2, width=8, depth=1).double(), (2,), 0.01, 20.0, 1.0)
    method = Method().replace(
        levels={"kind": "log_uniform"},
        optimizer={"lr": 1e-300},
        fake={"warmup": warmup, "optimizer": {"lr": 1e-2, "schedule": "linear", "warmup": 3}},
        train={"steps": 1, "batch": batch, "accumulation": accumulation},
    )
    expected = copy.deepcopy(fake)
    adam = torch.optim.AdamW(expected.parameters(), lr=1e-2, betas=(0.0, 0.999), weight_decay=0.0)
    for number in range(warmup):
        draws = Draws.of_range(0, -1 - number, 0, batch)
        x = student(student.prior(draws)).detach()
        sigma = 0.002 * 40_000 ** draws.uniform("warmup-sigma")
        noisy = x + sigma[:, None] * draws.normal("warmup-noise", (2,), torch.float64)
        error = (expected(noisy, sigma) - x).square().sum(1)
        (expected.weight(sigma) * error).mean().backward()
        adam.param_groups[0]["lr"] = 1e-2 * (1 - number / (warmup + 1)) * min(1, (number + 1) / 3)
        adam.step()
        adam.zero_grad()
    state = State.fresh(student, fake, method)
    instructor = gaussian(torch.zeros(2).double(), torch.eye(2).double())
    seen = {}

    # The first call after the warm-up is the student's first update.
    instructor.register_forward_pre_hook(
        lambda *_: seen.setdefault("fake", copy.deepcopy(state.fake.state_dict())) and None
    )
    for _ in train(state, instructor, method, Accelerator(cpu=True)):
        pass
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(seen["fake"][name], value, rtol=0, atol=1e-12)


def divergence(student, mean, covariance):
    """KL(N(b, A A') || N(mean, covariance)) in nats."""
    a, b = (part.detach().double() for part in student.network.parameters())
    ours, inverse = a @ a.T, covariance.double().inverse()
    apart = mean.double() - b
    trace = (inverse @ ours).trace() + apart @ inverse @ apart - 2
    return 0.5 * (trace - torch.logdet(inverse @ ours)).item()


@pytest.mark.parametrize("kind", ["ikl", "sid"])
def test_a_linear_generator_reaches_a_gaussian_instructor(kind):
    mean = torch.tensor([0.5, -1.0])
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    instructor, student = gaussian(mean, covariance), linear()
    torch.manual_seed(1)
    adam = {"betas": [0.0, 0.99], "schedule": "linear"}
    method = Method().replace(
        divergence=kind,
        levels={"kind": "log_uniform", "sigma_min": 0.1, "sigma_max": 5.0},
        optimizer={"lr": 1e-2} | adam,
        fake={"warmup": 100, "optimizer": {"lr": 5e-3} | adam},
        train={"steps": 300, "batch": 128},
    )
    state = State.fresh(student, Karras(MLP(2, width=32, depth=1), (2,)), method)
    before = divergence(student, mean, covariance)
    for _ in train(state, instructor, method, Accelerator(cpu=True)):
        pass
    assert before > 0.5
    assert divergence(student, mean, covariance) < 0.05


def test_the_best_is_kept_on_disk_and_found_again(tmp_path):
    modules = {"10": torch.nn.Linear(1, 1), "50": torch.nn.Linear(1, 1)}
    best, records = Best(tmp_path / "best"), []
    for step, pair in enumerate([(3.0, 3.0), (2.0, 2.5), (2.2, 1.0), (1.5, 1.0), (1.2, 1.1)]):
        distances = dict(zip(modules, pair, strict=True))
        with torch.no_grad():
            for module in modules.values():
                module.weight.fill_(step)
        best.offer(step, distances, modules)
        records.append({"step": step, "fd": distances})
    assert (best.step, best.name, best.distance, best.stale) == (2, "50", 1.0, 2)
    assert [path.name for path in (tmp_path / "best").iterdir()] == [best.path.name]
    again = Best(tmp_path / "best", records)
    assert (again.step, again.name, again.stale) == (2, "50", 2)
    module = torch.nn.Linear(1, 1)
    again.restore(module)
    assert module.weight.item() == 2
    earlier = Best(tmp_path / "best", records[:2])  # resumed from before the best
    assert (earlier.name, earlier.stale) == ("", 2)
    earlier.offer(2, {"10": 9.0, "50": 9.0}, modules)
    assert earlier.step == 2
