"""Keys that save memory leave the numbers alone, or say why they cannot be had."""

import copy
import sys

import pytest
import torch

from distill.__main__ import main
from distill.build import copy_of, full_copy
from distill.cost.memory import halve_frozen, recompute_activations
from distill.divergences import SiD
from instil.base.average import Average
from instil.base.errors import InstilError
from instil.base.optimizer import Adam
from instructors.adapters.folder import save
from instructors.adapters.karras import Karras
from instructors.conditions.conditioning import Conditioning
from instructors.denoiser import UNCONDITIONAL, class_labels
from instructors.lora import Lora
from instructors.low_rank import adapters
from instructors.nvidia.song_unet import SongUNet
from instructors.prepare import prepare
from students.one_step import OneStep


@pytest.fixture
def tiny(on_tiny):
    """The command line of a small fast run; later words win."""
    return [
        *on_tiny,
        "train={steps: 2, batch: 4, averages: [50]}",
        "evaluation={instructor_steps: 2, extractor: null}",
    ]


@pytest.fixture
def prepared(tiny_pipeline, tmp_path):
    """An instructor of a family, and three conditions."""

    def make(kind):
        (tmp_path / "prompts.txt").write_text("a fox\ntwo owls\nthe sea")
        text = kind not in ("labels", "dit", "ncsnpp")
        asked = Conditioning(prompts=str(tmp_path / "prompts.txt") if text else None)
        found = prepare(str(tiny_pipeline(kind)), asked, side=4 if kind == "flux" else None)
        return found.denoiser, found.prior.at(torch.arange(3))

    return make


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["labels", "dit", "sd", "sdxl", "pixart", "sd3", "sana", "flux"])
def test_recomputed_activations_give_the_same_gradients(kind, autocast, prepared):
    """Of parameters and, through the Jacobians of both networks, of samples."""
    instructor, condition = prepared(kind)
    fake = full_copy(instructor)
    with torch.no_grad():
        for parameter in fake.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    noisy, sigma = torch.randn(3, *instructor.shape), torch.tensor([0.2, 1.0, 5.0])
    found, held = [], []
    for recomputed in (False, True):
        networks = instructor, mine = copy.deepcopy(instructor), copy.deepcopy(fake)
        bytes_held = 0

        def pack(tensor):
            nonlocal bytes_held
            bytes_held += tensor.numel() * tensor.element_size()
            return tensor

        for network in networks if recomputed else ():
            recompute_activations(network)
        leaf = noisy.clone().requires_grad_()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            one, two = mine(leaf, sigma, condition), instructor(leaf, sigma, condition)
        loss = SiD()(leaf, sigma, two, one).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        one.square().mean().backward()
        found.append([gradient, *(p.grad for p in mine.parameters() if p.grad is not None)])
        held.append(bytes_held)
    assert len(found[0]) == len(found[1]) > 10
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert held[1] < 0.7 * held[0]


@pytest.mark.parametrize("kind", ["edm", "sd3", "sana", "flux"])
def test_weights_kept_in_half_precision_are_those_of_autocast(kind, unet, prepared):
    if kind == "edm":
        denoiser = Karras(unet(classes=3), (1, 8, 8), classes=3).eval().requires_grad_(False)
        condition = class_labels(3, torch.arange(3))
    else:
        denoiser, condition = prepared(kind)
    fake = copy_of(denoiser, Lora(rank=2), 0, "fake.lora")
    with torch.no_grad():
        for layer in adapters(fake).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
    noisy, sigma = torch.randn(3, *denoiser.shape), torch.tensor([0.1, 1.0, 10.0])
    with torch.autocast("cpu", torch.bfloat16):
        expected = [each(noisy, sigma, condition) for each in (denoiser, fake)]
    before = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    for each in (denoiser, fake):
        halve_frozen(each)
    assert sum(p.numel() * p.element_size() for p in denoiser.parameters()) < 0.6 * before
    theirs = {id(parameter) for parameter in denoiser.parameters()}
    assert theirs < {id(parameter) for parameter in fake.parameters()}
    assert all(p.dtype == torch.float32 for p in fake.parameters() if p.requires_grad)
    for each, wanted in zip((denoiser, fake), expected, strict=True):
        assert torch.equal(each(noisy, sigma, condition), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(each(noisy, sigma, condition), wanted)


@pytest.mark.parametrize("kind", ["dit", "sd", "ncsnpp"])
def test_networks_that_sigma_multiplies_are_never_rounded(kind, prepared):
    denoiser, condition = prepared(kind)
    condition = condition if kind != "ncsnpp" else UNCONDITIONAL
    noisy, sigma = torch.randn(3, *denoiser.shape), torch.tensor([0.1, 1.0, 10.0])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = denoiser(noisy, sigma, condition)
    assert torch.equal(rounded, denoiser(noisy, sigma, condition))
    with pytest.raises(InstilError, match=r"is multiplied by sigma, up to .* leave it out"):
        halve_frozen(denoiser)
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}


def test_a_run_with_frozen_weights_in_half_precision_learns_the_same(
    tiny, tmp_path, weights, assert_same
):
    words = [*tiny, "train.precision=bf16", "student.lora={rank: 2}", "fake.lora={rank: 2}"]
    assert main([*words, "name=full"]) == 0
    assert main([*words, "name=half", "train.frozen=bf16"]) == 0
    assert_same(*(weights(tmp_path / "runs" / name) for name in ("full", "half")))


def test_averages_may_be_kept_elsewhere(unet, tmp_path, tiny, weights, assert_same):
    source = OneStep(Karras(unet(), (1, 8, 8)), 2.5)
    average = Average(source, 100, device="meta")
    assert {p.device.type for p in average.module.parameters()} == {"meta"}
    assert {p.device.type for p in source.parameters()} == {"cpu"}
    average.update(source, 8, 8)
    lora = copy_of(source.denoiser, Lora(rank=2), 0, "student.lora")
    Average(lora, 100, device="meta").update(lora, 8, 8)
    assert {p.device.type for p in (*lora.parameters(), *source.parameters())} == {"cpu"}
    here = Average(source, 100)
    assert here.on(torch.device("cpu")) is here.module
    assert next(here.on(torch.device("meta")).parameters()).is_meta
    assert not next(here.module.parameters()).is_meta
    assert main([*tiny, "name=device"]) == 0
    assert main([*tiny, "name=cpu", "train.averages_on=cpu"]) == 0
    assert_same(*(weights(tmp_path / "runs" / name) for name in ("device", "cpu")))


def test_eight_bits_need_a_package(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert main([*tiny, "fake.optimizer.bits=8"]) == 2
    message = "8 needs the package bitsandbytes; pip install 'instil[bits]'"
    assert capsys.readouterr().err == f"error: optimizer.bits: {message}\n"
    assert not (tmp_path / "runs").exists()


def test_moments_of_eight_bits_are_small_learn_and_survive_a_restart(
    tiny, tmp_path, weights, assert_same
):
    pytest.importorskip("bitsandbytes")
    target = torch.randn(128, 128)
    layers = [torch.nn.Linear(128, 128, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    start = layers[0].weight.detach().clone()
    for layer, bits in zip(layers, (8, 32), strict=True):
        adam = Adam(lr=1e-2, bits=bits)
        optimizer = adam.build(layer)
        for step in range(50):
            (layer.weight - target).square().sum().backward()
            adam.update(optimizer, step, 50)
        held = sum(
            t.numel() * t.element_size()
            for t in optimizer.state[layer.weight].values()
            if isinstance(t, torch.Tensor)
        )
        assert held < 0.3 * 8 * target.numel() if bits == 8 else held > 8 * target.numel()
    moved = [(layer.weight - start).flatten() for layer in layers]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95
    words = [*tiny, "optimizer.bits=8", "fake.optimizer.bits=8", "train.steps=4"]
    assert main([*words, "name=whole"]) == 0
    assert main([*words, "name=parts", "train.steps=2"]) == 0
    assert main([*words, "name=parts", "--resume"]) == 0
    assert_same(*(weights(tmp_path / "runs" / name) for name in ("whole", "parts")))


def edm(tiny, tmp_path, prepared):
    network = SongUNet(8, 1, 1, model_channels=8, channel_mult=(1, 1), num_blocks=1)
    (tmp_path / "song").mkdir()
    save(tmp_path / "song", Karras(network, (1, 8, 8)))
    return [f"instructor={tmp_path / 'song'}", "train.checkpointing=true"]


def epsilon(tiny, tmp_path, prepared):
    prepared("dit")
    return [f"instructor={tmp_path / 'dit'}", "train.frozen=bf16", "train.precision=bf16"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (edm, "train.checkpointing: a SongUNet cannot recompute its activations; leave it out"),
        (epsilon, "train.frozen: the output of this DiTTransformer2DModel is multiplied by sigma"),
        (lambda *_: ["train.frozen=bf16"], "train.frozen: bf16 needs train.precision=bf16"),
        (lambda *_: ["optimizer.bits=4"], "optimizer.bits: input should be 8 or 32, got 4"),
        (
            lambda *_: ["fake.lora.rang=4"],
            "fake.lora.rang: unknown key; did you mean fake.lora.rank",
        ),
        (
            lambda *_: ["student.lora={rank: 0}"],
            "student.lora.rank: input should be greater than 0",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(words, message, tiny, tmp_path, prepared, capsys):
    assert main([*tiny, *words(tiny, tmp_path, prepared)]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {message}")
    assert all(note.startswith("precision bf16: ") for note in notes)
    assert not (tmp_path / "runs").exists()
