"""Few-step students: a chain is its definition, each exit is trained, the export is the student."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline

from distill.__main__ import main
from distill.build import full_copy
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.adapters.discrete import DiscreteVP
from instructors.adapters.karras import Karras
from instructors.analytic import gaussian
from instructors.denoiser import class_labels
from students.export import export
from students.few_step import FewStep
from students.load import load
from students.source import Source

CARD = {"instructor": "x", "licence": "mit", "recipe": "a: 1\n", "figures": {"NFE": "2"}}


@pytest.fixture
def exact():
    """The exact denoiser of N(mean, 2), with a parameter so that students accept it."""
    denoiser = gaussian(torch.tensor([1.0]), torch.tensor([[2.0]]))
    denoiser.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    return denoiser


def test_a_chain_of_exact_denoisers_has_the_variance_of_its_recursion(exact):
    # D(x, s) = 1 + g (x - 1), g = 2 / (2 + s**2), so the variance goes v <- g**2 (v + s**2); the
    # first input is s_1 z around 0, of variance s_1**2 and mean 0.
    sigmas = (4.0, 2.0, 0.5)
    student = FewStep(exact, sigmas).eval()
    x = student(student.prior(Draws.of_range(0, 0, 0, 200_000)))[:, 0]
    mean, variance = 0.0, 0.0
    for sigma in sigmas:
        g = 2 / (2 + sigma**2)
        mean, variance = 1 + g * (mean - 1), g**2 * (variance + sigma**2)
    assert x.mean().item() == pytest.approx(mean, abs=4 * (variance / 2e5) ** 0.5)
    assert x.var().item() == pytest.approx(variance, rel=4 * (2 / 2e5) ** 0.5)


def network(unet, classes=3):
    return Karras(unet(classes=classes or None), (1, 8, 8), classes=classes).eval()


@torch.no_grad()
def test_each_sample_leaves_after_its_own_step(unet):
    denoiser = network(unet)
    student = FewStep(denoiser, (2.5, 0.8, 0.3)).train()
    draws = Draws.of_range(0, 0, 0, 30)
    condition = class_labels(3, draws.index)
    *noises, leave = student.prior(draws)
    assert set(leave.tolist()) == {0, 1, 2}
    found = student((*noises, leave), condition)
    x, expected = torch.zeros_like(noises[0]), {}
    for number, (sigma, noise) in enumerate(zip(student.sigmas, noises, strict=True)):
        level = torch.full((30,), sigma)
        noisy = x + sigma * noise if number else denoiser.start(noise, sigma)
        x = denoiser(noisy, level, condition)
        expected[number] = x
    for number in range(3):
        rows = leave == number
        torch.testing.assert_close(found[rows], expected[number][rows], rtol=0, atol=1e-5)
    assert (student.eval().prior(draws)[-1] == 2).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_is_that_of_the_step_that_is_left_alone(unet, autocast):
    student = FewStep(network(unet), (2.5, 0.8)).train()
    draws = Draws.of_range(0, 0, 0, 8)
    condition = class_labels(3, draws.index)
    first, second, leave = student.prior(draws)
    denoiser, levels = student.denoiser, torch.tensor(student.sigmas)

    def gradients(images):
        images().square().sum().backward()
        found = {name: p.grad.clone() for name, p in student.named_parameters()}
        student.zero_grad(set_to_none=True)
        return found

    def alone():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
            start = denoiser.start(first, student.sigmas[0])
            noisy = denoiser(start, levels[:1].expand(8), condition) + levels[1] * second
            entered = torch.where(leave[:, None, None, None] == 0, start, noisy)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return denoiser(entered, levels[leave], condition)

    def whole():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return student((first, second, leave), condition)

    found, expected = gradients(whole), gradients(alone)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_it_is_trained_as_any_student_and_without_dropout(unet):
    instructor = network(unet).requires_grad_(False)
    instructor.network.down_blocks[0].resnets[0].dropout.p = 0.5
    student = FewStep(full_copy(instructor), (2.5, 0.8)).train()
    draws = Draws.of_range(0, 0, 0, 4)
    condition = class_labels(3, draws.index)
    assert torch.equal(*(student(student.prior(draws), condition) for _ in range(2)))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method = Method().replace(train={"steps": 3, "batch": 12})
    state = State.fresh(student, full_copy(instructor), method)
    for report in train(state, instructor, method, Accelerator(cpu=True)):
        assert report.norm.isfinite()
    changed = [not torch.equal(value, before[k]) for k, value in student.state_dict().items()]
    assert sum(changed) > 0.9 * len(changed)


@pytest.mark.parametrize("family", ["karras", "discrete"])
@torch.no_grad()
def test_the_export_is_the_student_and_for_plain_diffusers_its_first_step(unet, tmp_path, family):
    denoiser = network(unet, 0)
    if family == "discrete":
        alphas = DDPMScheduler().alphas_cumprod
        denoiser = DiscreteVP(unet(), (1, 8, 8), alphas, "epsilon").eval()
    student = FewStep(denoiser, (2.5, 0.6)).eval()
    export(student, tmp_path / "student", CARD)
    loaded = load(Source(weights=str(tmp_path / "student")))
    assert loaded.nfe == 2
    torch.testing.assert_close(loaded.sample(range(4)), student.sample(range(4)), rtol=0, atol=2e-5)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "2 network evaluations" in card
    assert "few-step" in card
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert pipeline.unet.config.sample_size == 8


@pytest.mark.parametrize("sigmas", [(0.8, 2.5), (2.5, 2.5), (100.0, 1.0), (1.0, 1e-4), ()])
def test_levels_must_fall_inside_the_instructors_range(unet, sigmas):
    with pytest.raises(InstilError, match=r"student.sigmas: .* must fall inside"):
        FewStep(network(unet), sigmas)


def test_a_run_ends_in_a_folder_and_a_report(unet, tmp_path):
    from diffusers import ConsistencyModelPipeline, EDMEulerScheduler

    ConsistencyModelPipeline(unet(classes=3), EDMEulerScheduler()).save_pretrained(tmp_path / "i")
    words = [f"instructor={tmp_path / 'i'}", f"output={tmp_path}", "evaluation.extractor=null"]
    words += ["student={kind: few_step, sigmas: [2.5, 0.6]}", "train.steps=2", "train.batch=6"]
    assert main(["digits", *words]) == 0
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["student"]["nfe"] == 2
    assert report["forwards_per_update"] == 10  # of SiD's nine, and the step before the last
    assert load(Source(weights=str(tmp_path / "digits" / "student"))).nfe == 2
