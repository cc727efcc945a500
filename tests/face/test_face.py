"""What `import instil` offers, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import instil
from distill.recipe import RECIPES, Recipe
from eval.quality import features
from instil import api
from instil.base import data
from instil.base.config import load_recipe
from instil.base.config.recipes import resolve

ROOT = Path(__file__).parents[2]


def test_the_import_costs_no_torch_and_no_pydantic():
    code = "import sys, instil; sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_name_is_the_object_that_editors_see():
    assert {"distil", "fid", "load_instructor", "load_student", "Recipe"} < set(dir(instil))
    assert all(getattr(instil, name) is not None for name in dir(instil))
    assert instil.load_images is data.load
    assert instil.Recipe is Recipe
    with pytest.raises(AttributeError, match="no attribute 'distill_'"):
        _ = instil.distill_


class Corner(nn.Module):
    """An extractor of which the Fréchet distance is known: two pixels."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.gain * images[:, 0, 0, :2], images[:, 0, 0, :1]


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 200, (400, 1, 8, 8), dtype=torch.uint8)


def test_the_distance_of_an_own_extractor_is_the_closed_form(pixels):
    moved = pixels.clone()
    moved[:, 0, 0, 1] += 50
    expected = (50 / pixels[:, 0, 0, 1].float().std().item()) ** 2
    distance = instil.fid(moved, pixels, extractor=Corner())
    assert distance == pytest.approx(expected, rel=1e-4)
    assert repr(distance).startswith("FD-Corner-")
    floats = moved.float() / 127.5 - 1
    assert instil.fid(floats, pixels, extractor=Corner()) == pytest.approx(distance)


def test_an_extractor_is_named_by_its_class_and_weights(pixels, tmp_path, monkeypatch):
    other = Corner()
    nn.init.constant_(other.gain, 2.0)
    names = {features.of_network(module).name for module in (Corner(), Corner(), other)}
    assert len(names) == 2
    (tmp_path / "judges.py").write_text("from tests.face.test_face import Corner")
    monkeypatch.chdir(tmp_path)
    assert features.load("judges:Corner").name in names


def test_what_fid_cannot_read_is_said(pixels):
    for images, message in (
        (pixels.float() / 255, r"images in \[0, 1\] become such by 2 \* images - 1"),
        (pixels[0], r"\(1, 8, 8\): expected a tensor \(N, C, H, W\)"),
    ):
        with pytest.raises(instil.InstilError, match=message):
            instil.fid(images, pixels, extractor=Corner())
    with pytest.raises(instil.InstilError, match="Flatten: expected it to return features"):
        instil.fid(pixels, pixels, extractor=nn.Flatten())


def test_models_are_sampled(pixels):
    student = instil.load_student("digits-gan")
    sampled = instil.fid(student, "digits", extractor="digits", samples=64)
    images = torch.cat([student.sample(range(k, k + 32)) for k in (0, 32)])
    assert sampled == pytest.approx(instil.fid(images, "digits", extractor="digits"), rel=1e-4)


def recipe(source, **changes):
    return resolve(instil.Recipe, api._recipe(source, changes))


def test_a_recipe_from_python_is_the_one_of_the_command(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: digits\nname: mine\ntrain: {steps: 7}\n")
    words = ["train.steps=5", "train.seed=3", "optimizer.lr=0.001", "divergence=dmd"]
    expected = load_recipe(instil.Recipe, "digits", words, RECIPES)
    changes = {"steps": 5, "train": {"seed": 3}, "lr": 1e-3, "divergence": instil.DMD()}
    assert recipe("digits", **changes) == expected
    assert recipe(recipe("digits"), **changes) == expected
    mine = recipe(tmp_path / "mine.yaml", batch=8)
    assert (mine.name, mine.train.steps, mine.train.batch) == ("mine", 7, 8)
    assert mine.optimizer == recipe("digits").optimizer
    other = recipe("google/ddpm-cifar10-32")
    assert other == instil.Recipe(name="ddpm-cifar10-32", instructor="google/ddpm-cifar10-32")


def test_a_misspelt_key_is_refused_before_anything_is_loaded():
    with pytest.raises(instil.InstilError, match=r"train.stepz: unknown key; did you mean"):
        instil.distil("a/model", train={"stepz": 3})
    with pytest.raises(instil.InstilError, match="divergence: unknown kind 'dmt'"):
        instil.distil("a/model", divergence="dmt")
