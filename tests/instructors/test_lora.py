"""Adapters on shared weights: the same numbers as a full network, for less memory."""

import copy
import json
import sys

import diffusers
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from distill.__main__ import main
from distill.build import copy_of
from distill.cost.memory import recompute_activations
from distill.divergences import SiD
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.average import Average
from instil.base.errors import InstilError
from instructors.adapters.karras import Karras
from instructors.conditions.conditioning import Conditioning
from instructors.denoiser import class_labels
from instructors.lora import Lora
from instructors.low_rank import adapters, merged
from instructors.prepare import prepare
from instructors.training.denoising import denoising_loss
from students.compatibility import check_saved
from students.export import export
from students.few_step import FewStep
from students.load import load as load_student
from students.one_step import OneStep
from students.source import Source
from tests.tools import ranks

PROMPTS = ["a fox", "two owls", "the sea"]
CARD = {"instructor": "x", "licence": "unknown", "recipe": "a: 1\n", "figures": {"NFE": "1"}}


def adapted(denoiser, rank=3, alpha=6, size=0.3):
    """A copy with adapters that do something."""
    copied = copy_of(denoiser, Lora(rank=rank, alpha=alpha), 0, "fake.lora")
    with torch.no_grad():
        for layer in adapters(copied).values():
            layer.lora_B["default"].weight.normal_(std=size)
    return copied


def own(denoiser):
    """The parameters that are trained, by name."""
    return {name: p for name, p in denoiser.named_parameters() if p.requires_grad}


@pytest.fixture
def instructor(unet):
    """In float64."""
    network = unet(classes=3)
    return Karras(network.double(), (1, 8, 8), classes=3).eval().requires_grad_(False)


@pytest.fixture
def point():
    """Where denoisers are compared."""
    noisy = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    return noisy, torch.tensor([0.1, 1.0, 10.0]).double(), class_labels(3, torch.arange(3))


def test_it_starts_as_the_instructor_and_shares_every_tensor_of_it(instructor, point):
    fake = copy_of(instructor, Lora(rank=2), 5, "fake.lora")
    assert torch.equal(fake(*point), instructor(*point))
    theirs = {id(t) for t in (*instructor.parameters(), *instructor.buffers())}
    tensors = dict((*fake.named_parameters(), *fake.named_buffers()))
    mine = {name for name, tensor in tensors.items() if id(tensor) not in theirs}
    assert mine == fake.state_dict().keys() == own(fake).keys()
    assert all(".lora_A." in name or ".lora_B." in name for name in mine)
    layers = [m for m in instructor.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(mine) == 2 * len(layers)
    again, other = (copy_of(instructor, Lora(rank=2), seed, "fake.lora") for seed in (5, 6))
    name = next(name for name in mine if ".lora_A." in name)
    assert torch.equal(again.state_dict()[name], fake.state_dict()[name])
    assert not torch.equal(other.state_dict()[name], fake.state_dict()[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_a_jacobian_are_those_of_the_full_network(
    instructor, point, checkpointing
):
    """SiD's gradient at the sample, and the chain rule from W + 2 B A to A and B, by hand."""
    noisy, sigma, condition = point
    fake, full = adapted(instructor), copy.deepcopy(instructor).requires_grad_(True)
    layers = {name: full.get_submodule(name) for name in adapters(fake)}
    with torch.no_grad():
        for name, layer in adapters(fake).items():
            a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
            change = 2 * torch.einsum("or,ri...->oi...", b.flatten(1), a)
            layers[name].weight.add_(change)
    if checkpointing:
        for each in (fake, instructor):
            recompute_activations(each)
    found = []
    for each in (fake, full):
        leaf = noisy.clone().requires_grad_()
        denoised, taught = each(leaf, sigma, condition), instructor(leaf, sigma, condition)
        loss = SiD()(leaf, sigma, taught, denoised).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        denoising_loss(denoised, torch.zeros_like(noisy), each.weight(sigma)).mean().backward()
        found.append(gradient)
    assert found[1].abs().max() > 1e-2
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    for name, layer in adapters(fake).items():
        a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
        slope = layers[name].weight.grad
        to_a = 2 * torch.einsum("or,oi...->ri...", b.flatten(1), slope)
        to_b = 2 * torch.einsum("oi...,ri...->or", slope, a).view_as(b)
        torch.testing.assert_close(a.grad, to_a, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(b.grad, to_b, rtol=1e-9, atol=1e-10)
    assert all(parameter.grad is None for parameter in instructor.parameters())


def test_merged_is_the_same_denoiser_and_shares_nothing(instructor, point):
    fake = adapted(instructor)
    whole = merged(fake)
    assert whole.state_dict().keys() == instructor.state_dict().keys()
    torch.testing.assert_close(whole(*point), fake(*point), rtol=1e-9, atol=1e-11)
    assert (whole(*point) - instructor(*point)).abs().max() > 0.1
    theirs = {t.data_ptr() for t in instructor.parameters()}
    assert not theirs & {t.data_ptr() for t in whole.parameters()}


def test_state_dicts_are_strict(instructor):
    one, two = (copy_of(instructor, Lora(rank=2), seed, "fake.lora") for seed in (0, 1))
    pair = torch.nn.ModuleDict({"full": copy.deepcopy(instructor), "adapted": one})
    state = pair.state_dict()
    assert len(state) == len(instructor.state_dict()) + len(one.state_dict())
    pair.load_state_dict(state)
    for name in ("full.network.conv_in.weight", "adapted.network.conv_in.lora_A.default.weight"):
        some = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            pair.load_state_dict(some)
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        two.load_state_dict(instructor.state_dict() | one.state_dict())


def distilled(instructor, checkpointing, accumulation=1, divergence="sid", student=None):
    """Student, fake and losses after three updates with a LoRA fake score."""
    method = Method().replace(
        divergence=divergence,
        optimizer={"lr": 1e-3, "eps": 1e-4},
        fake={"updates": 2, "optimizer": {"lr": 1e-2, "eps": 1e-4}},
        train={
            "steps": 3,
            "batch": 4,
            "accumulation": accumulation,
            "averages": [10],
        },
    )
    torch.manual_seed(1)
    fake = adapted(instructor, size=0.05)
    student = OneStep(student or copy_of(instructor, None, 0, "student.lora"), 2.5)
    state = State.fresh(student, fake, method)
    for module in (student, fake, instructor) if checkpointing else ():
        recompute_activations(module)
    engine = Accelerator(cpu=True)
    losses = [report.losses["student"] for report in train(state, instructor, method, engine)]
    return state, torch.stack(losses)


@pytest.mark.parametrize("divergence", ["sid", "ikl"])
def test_checkpointing_and_accumulation_change_nothing(instructor, divergence):
    frozen = {name: tensor.clone() for name, tensor in instructor.state_dict().items()}
    start = adapted(instructor, size=0.05).state_dict()
    found = [
        distilled(copy.deepcopy(instructor), checkpointing, accumulation, divergence)
        for checkpointing, accumulation in ((False, 1), (True, 1), (True, 2))
    ]
    for state, losses in found[1:]:
        torch.testing.assert_close(losses, found[0][1], rtol=1e-8, atol=1e-10)
        for mine, first in ((state.student, found[0][0].student), (state.fake, found[0][0].fake)):
            for name, tensor in mine.state_dict().items():
                expected = first.state_dict()[name]
                torch.testing.assert_close(tensor, expected, rtol=1e-7, atol=1e-9)
    for name, tensor in found[0][0].fake.state_dict().items():
        assert not torch.equal(tensor, start[name]), name
    distilled(instructor, True)
    assert all(torch.equal(t, frozen[name]) for name, t in instructor.state_dict().items())
    assert all(parameter.grad is None for parameter in instructor.parameters())


def test_averages_of_adapters_share_the_rest(instructor, point):
    student = copy_of(instructor, Lora(rank=2), 0, "student.lora")
    state, _ = distilled(instructor, False, student=student)
    (average,) = state.averages
    theirs = {id(parameter) for parameter in instructor.parameters()}
    mine = {name for name, p in average.module.named_parameters() if id(p) not in theirs}
    assert mine == average.module.state_dict().keys() == state.student.state_dict().keys()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            average.module.state_dict().values(), state.student.state_dict().values(), strict=True
        )
    ]
    assert any(moved)
    latent = (point[0],)
    expected = OneStep(merged(average.module.denoiser), 2.5)(latent, point[2])
    torch.testing.assert_close(average.module(latent, point[2]), expected, rtol=1e-9, atol=1e-11)
    follows = Average(state.student, halflife_images=0)
    own(student)[next(iter(own(student)))].data.add_(1)
    follows.update(state.student, 8, 8)
    assert torch.equal(follows.module(latent, point[2]), state.student(latent, point[2]))


def test_a_network_of_other_layers_has_no_adapters():
    denoiser = Karras(torch.nn.Bilinear(2, 2, 2), (2,))
    with pytest.raises(InstilError, match=r"fake.lora: this network has no layers of torch's own"):
        copy_of(denoiser, Lora(), 0, "fake.lora")


def test_targets_are_names_or_their_ends(tiny_pipeline):
    denoiser = prepare(str(tiny_pipeline("dit")), Conditioning()).denoiser
    fake = copy_of(denoiser, Lora(targets=("to_q", "attn1.to_v")), 0, "fake.lora")
    assert {name.rpartition(".")[2] for name in adapters(fake)} == {"to_q", "to_v"}
    with pytest.raises(InstilError, match=r"fake.lora.targets: no linear .* is called q; such as"):
        copy_of(denoiser, Lora(targets=("to_q", "q")), 0, "fake.lora")


@pytest.fixture
def tiny(on_tiny):
    """The command line of a small fast run with adapters."""
    return [
        *on_tiny,
        "train={steps: 4, batch: 4, averages: [50], checkpointing: true}",
        "fake={updates: 2, lora: {rank: 2}}",
        "student.lora={rank: 3, alpha: 6}",
        "evaluation={instructor_steps: 2, extractor: null}",
        "save_every=2",
    ]


def test_a_checkpoint_holds_adapters_alone_and_a_resumed_run_is_the_same(
    tiny, tmp_path, capsys, weights, assert_same
):
    assert main([*tiny, "name=whole"]) == 0
    assert main([*tiny, "name=parts", "train.steps=2"]) == 0
    assert main([*tiny, "name=parts", "--resume"]) == 0
    whole = weights(tmp_path / "runs" / "whole")
    assert_same(whole, weights(tmp_path / "runs" / "parts"))
    files = ("student", "fake", "average-50")
    assert all(".lora_" in n for n in whole if n.startswith(tuple(f"{file}." for file in files)))
    moments, adapted = (
        sum(n.startswith(f"{file}.") for n in whole) for file in ("fake-optimizer", "fake")
    )
    assert moments == 3 * adapted > 0
    assert main([*tiny, "name=parts", "--resume", "fake.lora.rank=3"]) == 2
    assert "fake.lora.rank: was 2, is 3" in capsys.readouterr().err
    # diffusers knows no adapters of this network, so they were merged
    student = load_student(Source(weights=str(tmp_path / "runs" / "whole" / "student")))
    assert not adapters(student)
    assert main([*tiny, f"fake.init={tmp_path / 'runs' / 'whole'}", "student.lora=null"]) == 0


@pytest.mark.slow
def test_two_processes_train_as_one(tiny, tmp_path, weights):
    # Adam would blow up the rounding of gradients that are nearly zero, as those of A are.
    tiny += ["optimizer.eps=1e-3", "fake.optimizer.eps=1e-3"]
    assert "2 process(es)" in ranks.run("distill.__main__", [*tiny, "name=two"])
    assert main([*tiny, "name=one"]) == 0
    one, two = (weights(tmp_path / "runs" / name) for name in ("one", "two"))
    for name, tensor in one.items():
        if name.startswith(("student.", "fake.")):
            torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("key", ["fake", "student"])
def test_without_peft_one_sentence_says_what_to_install(key, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    other = {"fake": "student", "student": "fake"}[key]
    assert main([*tiny, f"{other}.lora=null"]) == 2
    message = f"error: {key}.lora: it needs the package peft; pip install 'instil[lora]'\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "sana"])
def test_diffusers_loads_the_adapters_of_a_student(kind, tiny_pipeline, tmp_path):
    folder = tiny_pipeline(kind)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    guidance = 3.0 if kind == "flux" else 1.0
    asked = Conditioning(prompts=str(tmp_path / "prompts.txt"), guidance=guidance)
    side = 4 if kind == "flux" else None
    instructor = prepare(str(folder), asked, side=side)
    flow = kind not in ("sd", "sdxl")
    denoiser = adapted(instructor.denoiser, size=0.2)
    student = OneStep(denoiser, 50.0 if flow else 2.5)
    export(student, tmp_path / "student", CARD, folder)
    check_saved(student, tmp_path / "student")
    readme = (tmp_path / "student" / "README.md").read_text()
    assert 'pipeline.load_lora_weights("student")' in readme
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = json.loads((tmp_path / "student/scheduler/scheduler_config.json").read_text())
    kept = getattr(diffusers, scheduler["_class_name"])
    assert f"pipeline.scheduler = {kept.__name__}" in readme
    call = {"height": 32, "width": 32, "output_type": "pt", "num_inference_steps": 1}
    call |= {"prompt": PROMPTS, "guidance_scale": guidance}
    call |= {"use_resolution_binning": False} if kind == "sana" else {}
    call |= {"sigmas": [student.sigma / (1 + student.sigma)]} if flow else {}
    images = []
    for loaded in (False, True):
        if loaded:
            pipeline.load_lora_weights(tmp_path / "student")
        pipeline.scheduler = kept.from_pretrained(tmp_path / "student", subfolder="scheduler")
        images.append(pipeline(generator=torch.Generator().manual_seed(5), **call).images)
    unit = torch.randn(3, *student.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        sample = student((unit,), instructor.prior.at(torch.arange(3)))
    ours = (instructor.codec.decode(sample) / 2 + 0.5).clamp(0, 1)
    assert (images[0] - ours).abs().max() > 0.02  # the adapters matter
    torch.testing.assert_close(images[1], ours, rtol=0, atol=5e-4)
    with pytest.raises(InstilError, match="holds adapters alone"):
        load_student(Source(weights=str(tmp_path / "student")))


def test_few_steps_are_exported_with_their_first_level(tiny_pipeline, tmp_path):
    folder = tiny_pipeline("sd")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    asked = Conditioning(prompts=str(tmp_path / "prompts.txt"))
    student = FewStep(adapted(prepare(str(folder), asked).denoiser), [2.5, 0.6])
    export(student, tmp_path / "student", CARD, folder)
    check_saved(student, tmp_path / "student")
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "scheduler", "student.json", "README.md"}


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_adapters_that_no_pipeline_loads_are_merged(kind, tiny_pipeline, tmp_path):
    folder = tiny_pipeline(kind)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    asked = Conditioning(prompts=str(tmp_path / "prompts.txt") if kind == "pixart" else None)
    instructor = prepare(str(folder), asked)
    student = OneStep(adapted(instructor.denoiser), 2.5)
    export(student, tmp_path / "student", CARD, folder)
    check_saved(student, tmp_path / "student", instructor.prior)
    again = load_student(Source(weights=str(tmp_path / "student")))
    latent, wanted = (torch.randn(3, *student.shape),), instructor.prior.at(torch.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(
            again(latent, wanted), student(latent, wanted), rtol=0, atol=1e-4
        )
