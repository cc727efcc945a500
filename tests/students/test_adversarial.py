"""Adversarial training: its losses are their definitions; a run resumes and leaves snapshots."""

import copy
import re

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from instil.base import data
from instil.base.config import load_recipe, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import Condition, class_labels
from students.__main__ import RECIPES, main
from students.gan.adversary import Adversary, r1
from students.gan.train import TrainRecipe, fresh, train
from students.load import ZOO, load, zoo
from students.source import Source

TINY = {
    "z_dim": 8,
    "w_dim": 8,
    "channel_base": 64,
    "channel_max": 8,
    "adversary": 8,
}


def test_the_penalty_of_a_quadratic_is_its_gradient_squared():
    matrix = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    found = r1(((x @ matrix) * x).sum(1), x)
    expected = (x @ (matrix + matrix.T)).square().sum(1)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), matrix, retain_graph=True)
    (truth,) = torch.autograd.grad(expected.sum(), matrix)
    torch.testing.assert_close(gradient, truth)


@pytest.mark.parametrize("side", [4, 8, 32])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_parameter_of_the_discriminator_is_used(side, classes):
    adversary = Adversary((2, side, side), 6, classes)
    label = class_labels(classes, torch.arange(4))
    logits = adversary(torch.randn(4, 2, side, side), label)
    assert logits.shape == (4,)
    logits.square().sum().backward()
    for name, parameter in adversary.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("sides", [(10, 10), (8, 16), (2, 2)])
def test_sides_that_do_not_halve_are_refused(sides):
    with pytest.raises(InstilError, match=f"images of {sides[0]}x{sides[1]}: expected 4x4, 8x8"):
        Adversary((1, *sides), 8)


def test_an_update_is_that_of_two_plain_losses():
    recipe = validate(TrainRecipe, {"data": "digits", "network": TINY, "batch": 8, "steps": 1})
    images = data.load("digits:held-out")
    accelerator = Accelerator(cpu=True)
    state = fresh(recipe, images, accelerator.device)
    generator, adversary = copy.deepcopy(state.generator).train(), copy.deepcopy(state.adversary)
    for _ in train(state, images, recipe, accelerator):
        pass
    draws = Draws.of_range(0, 0, 0, 8)
    rows, label = draws.integers("row", len(images)), class_labels(10, draws.integers("label", 10))
    real = data.to_float(images.pixels[rows]).requires_grad_()
    sample = generator(generator.prior(draws), label)
    parts = (generator, adversary)
    adams = [torch.optim.AdamW(p.parameters(), 2e-3, (0.0, 0.99), weight_decay=0.0) for p in parts]
    sigmoid = torch.nn.functional.logsigmoid
    own = -sigmoid(adversary(sample, label)).mean()
    gradients = torch.autograd.grad(own, list(generator.parameters()), retain_graph=True)
    found = adversary(real, Condition(label=images.labels[rows]))
    (slope,) = torch.autograd.grad(found.sum(), real, create_graph=True)
    loss = -sigmoid(found) - sigmoid(-adversary(sample.detach(), label))
    (loss + 0.05 * slope.square().sum((1, 2, 3))).mean().backward()
    for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
        parameter.grad = gradient
    for adam in adams:
        adam.step()
    for ours, theirs in zip(parts, (state.generator, state.adversary), strict=True):
        for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            # Adam's first step is the sign of the gradient: noise around zero counts in full.
            close = (one - two).abs() < 1e-5
            assert close.float().mean() > 0.99, name


def test_a_run_leaves_its_snapshots_and_resumes_to_the_same_weights(tmp_path):
    sizes = "{" + ", ".join(f"{key}: {value}" for key, value in TINY.items()) + "}"
    words = ["train", "data=digits:held-out", f"network={sizes}", f"output={tmp_path}", "batch=8"]
    words += ["save_every=1", "snapshots=[2]"]
    assert main([*words, "steps=3", "name=whole"]) == 0
    assert main([*words, "steps=1", "name=parts"]) == 0
    assert main([*words, "steps=3", "name=parts", "--resume"]) == 0
    for folder in ("student-00000002", "student"):
        one, two = (
            load_file(tmp_path / run / folder / "model.safetensors") for run in ("whole", "parts")
        )
        assert all(torch.equal(one[name], two[name]) for name in one)
    student = load(Source(weights=str(tmp_path / "whole" / "student-00000002")))
    assert (student.shape, student.classes) == ((1, 8, 8), 10)
    card = (tmp_path / "whole" / "student-00000002" / "README.md").read_text()
    assert "after 2 updates" in card
    assert "Command: `python -m students train data=digits:held-out" in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=nowhere"], "nowhere: no such file"),
        (["digitz"], "did you mean digits?"),
        (["data=digits", "stepz=3"], "stepz: unknown key; did you mean steps?"),
        (["data=digits", "r1=-1"], "r1: input should be greater than or equal to 0"),
        (["data={tmp}/wide.npz"], "images of 8x16, expected square ones"),
        (["data={tmp}/ten.npz"], "resolution: 10 is no power of two"),
    ],
)
def test_wrong_inputs(tmp_path, capsys, words, message):
    import numpy as np

    np.savez(tmp_path / "wide.npz", images=np.zeros((3, 8, 16), np.uint8))
    np.savez(tmp_path / "ten.npz", images=np.zeros((3, 10, 10), np.uint8))
    words = [word.format(tmp=tmp_path) for word in words]
    assert main(["train", *words, f"output={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_embedded_students_are_small_and_say_where_they_come_from():
    assert zoo() == ["digits-gan", "digits-gan-half"]
    recipe = load_recipe(TrainRecipe, "digits", [], RECIPES)
    for name, steps in zip(zoo(), (recipe.steps, *recipe.snapshots), strict=True):
        folder = ZOO / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5 * 2**20
        card = (folder / "README.md").read_text()
        assert f"after {steps:,} updates" in card
        assert "Command: `python -m students train digits`" in card
        assert f"Data: `{recipe.data}`" in card
        assert re.search(r"date 20\d\d-\d\d-\d\d", card)
        student = load(Source(weights=name))
        assert (student.shape, student.classes) == ((1, 8, 8), 10)
