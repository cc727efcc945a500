"""Training an instructor: what it learns, what it leaves, how it goes on."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from instil.base import data
from instil.base.draws import Draws
from instructors.__main__ import main
from instructors.analytic import empirical
from instructors.load import load
from tests.tools import ranks

TINY = [
    "network={channels: [8, 8], layers: 1, middle_attention: false, groups: 4}",
    "batch=16",
    "log_every=5",
    "save_every=5",
    "optimizer.warmup=5",
]


@pytest.fixture
def words(tmp_path):
    return ["train", "data=digits:0-1", *TINY, f"output={tmp_path}", "steps=10"]


def tensors(folder):
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {
        f"{file.stem}.{name}": tensor
        for file in newest.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_what_training_leaves_is_an_instructor(words, tmp_path):
    assert main([*words, "name=a"]) == 0
    instructor = load(str(tmp_path / "a" / "instructor"))
    assert instructor.denoiser.shape == (1, 8, 8)
    assert instructor.denoiser.classes == 2
    spread = data.to_float(data.load("digits:0-1").pixels).std().item()
    assert instructor.denoiser.sigma_data == pytest.approx(spread, abs=1e-3)
    assert instructor.card.licence == "apache-2.0"
    card = (tmp_path / "a" / "instructor" / "README.md").read_text()
    assert "Command: `python -m instructors train data=digits:0-1" in card
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "a" / "instructor")
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.tensor([0, 1])
    images = pipeline(2, num_inference_steps=3, class_labels=labels, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_equals_uninterrupted(words, tmp_path, dropout):
    words.append(f"network.dropout={dropout}")
    assert main([*words, "name=whole"]) == 0
    assert main([*words, "name=parts", "steps=5", "optimizer.schedule=constant"]) == 0
    assert main([*words, "name=flat", "optimizer.schedule=constant"]) == 0
    assert main([*words, "name=parts", "optimizer.schedule=constant", "--resume"]) == 0
    one, two = tensors(tmp_path / "flat"), tensors(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[n], t) for n, t in tensors(tmp_path / "whole").items())


@pytest.mark.slow
def test_two_processes_train_what_one_does(words, tmp_path):
    assert main([*words, "name=one"]) == 0
    ranks.run("instructors.__main__", [*words, "name=two"])
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_it_learns_the_empirical_denoiser_of_few_images(tmp_path):
    """Two flat images: the exact denoiser is known at every level."""
    images = np.stack([np.full((8, 8), 64), np.full((8, 8), 192)]).astype(np.uint8)
    np.savez(tmp_path / "two.npz", images=images)
    words = ["train", f"data={tmp_path / 'two.npz'}", *TINY, f"output={tmp_path}", "name=two"]
    assert main([*words, "steps=400", "batch=64", "optimizer.lr=5e-3", "average=500"]) == 0
    learnt = load(str(tmp_path / "two" / "instructor")).denoiser
    exact = empirical(data.to_float(torch.from_numpy(images)[:, None]))
    draws = Draws.of_range(0, 0, 0, 64)
    for level, tolerance in ((0.2, 0.1), (1.0, 0.1), (4.0, 0.5)):
        sigma = torch.full((64,), level)
        clean = exact.means[draws.integers("row", 2)].view(64, 1, 8, 8)
        noisy = clean + level * draws.normal("noise", (1, 8, 8))
        with torch.no_grad():
            truth = exact(noisy, sigma)
            error = (learnt(noisy, sigma) - truth).square().mean().sqrt()
        assert error < tolerance * truth.std(), level


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data=nowhere", "nowhere: no such file"),
        ("data={tmp}/flat.npz", "all pixels are equal"),
        ("steps=0", "steps: input should be greater than 0"),
        ("network.channels=[8, 8, 8, 8, 8]", "5 levels need sides divisible by 16"),
        ("network.groups=3", "network.groups: 3 does not divide the 8 of network.channels"),
        ("network.attention=[2]", "network.channels has the levels 0 to 1"),
        ("sigma_min=90.0", "sigma from 90.0 to 80.0: expected two positive numbers that rise"),
        ("levels.sigma_min=90.0", "does not meet the network's own range"),
        ("network.chanels=[8]", "did you mean network.channels?"),
        ("levels=uniform", "unknown kind 'uniform'"),
    ],
)
def test_wrong_input_is_one_sentence(words, tmp_path, capsys, change, message):
    np.savez(tmp_path / "flat.npz", images=np.ones((4, 8, 8), np.uint8))
    assert main([*words, change.format(tmp=tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["flat.npz"]


def test_resuming_on_other_data_is_refused(words, tmp_path, capsys):
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    np.savez(tmp_path / "x.npz", images=pixels)
    words = [*words, f"data={tmp_path / 'x.npz'}", "name=a", "steps=5"]
    assert main(words) == 0
    np.savez(tmp_path / "x.npz", images=255 - pixels)
    assert main([*words, "--resume"]) == 2
    assert "data: was" in capsys.readouterr().err
    log = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 5
