"""Classes of the user's own, named by a recipe."""

import sys

import pytest
import torch
import yaml

from distill.divergences import IKL
from distill.recipe import Method, Recipe
from instil.base.config import load_recipe, validate
from instil.base.errors import InstilError
from instil.base.levels import LevelDistribution

OWN = """
from typing import ClassVar
from pydantic import PositiveFloat
from distill.divergences import Divergence, SiD
from instil.base.levels import LevelDistribution

class Reverse(Divergence):
    jacobian: ClassVar[bool] = False
    power: PositiveFloat = 2.0

    def __call__(self, sample, sigma, instructor_denoised, fake_denoised):
        return (sample * self.power).flatten(1).sum(1)

class Softer(SiD):
    bound: tuple[float, ...] = (1.0,)

class Fixed(LevelDistribution):
    at: PositiveFloat = 1.0

    def quantile(self, uniform, low, high):
        return uniform * 0 + self.at

class Half(Divergence):
    jacobian: ClassVar[bool] = False

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "parts.py").write_text(OWN)
    (tmp_path / "mine" / "broken.py").write_text("import json\n\njson.loads('{')\n")
    (tmp_path / "mine" / "torn.py").write_text("x = (\n")
    (tmp_path / "mine" / "needs.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def recipe(**changes):
    return validate(Recipe, {"name": "r", "instructor": "digits"} | changes)


def test_a_class_in_the_working_folder_is_made_from_its_options(own):
    made = recipe(divergence={"kind": "mine.parts:Reverse", "power": 3.0}).divergence
    assert type(made).__name__ == "Reverse"
    x = torch.ones(2, 1, 2, 2)
    assert made(x, torch.ones(2), x, x).tolist() == [12.0, 12.0]


def test_it_survives_its_own_yaml_and_changes_on_top(own):
    wanted = {
        "divergence": {"kind": "mine.parts:Softer", "alpha": 1.2, "bound": [2, 3]},
        "levels": "mine.parts:Fixed",
        "fake": {"levels": {"kind": "mine.parts:Fixed", "at": 2.0, "sigma_max": 5.0}},
    }
    first = recipe(**wanted)
    assert first.divergence.bound == (2.0, 3.0)
    assert first.model_dump(mode="json")["divergence"] == wanted["divergence"]
    (own / "again.yaml").write_text(yaml.safe_dump(first.model_dump(mode="json")))
    assert load_recipe(Recipe, "again.yaml", [], own) == first
    changed = load_recipe(Recipe, "again.yaml", ["fake.levels.at=3.0"], own)
    assert changed.fake.levels.at == 3.0
    assert changed.fake.levels.sigma_max == 5.0
    assert load_recipe(Recipe, "again.yaml", ["levels=log_normal"], own).levels.std == 1.2


def test_a_file_may_be_named_too(own):
    (own / "more.py").write_text(OWN)
    first = recipe(divergence={"kind": "./more.py:Reverse", "power": 3.0})
    assert first.divergence.power == 3.0
    kind = first.model_dump()["divergence"]["kind"]
    assert kind == "more.py:Reverse"
    assert recipe(**{"divergence": {"kind": kind, "power": 3.0}}).divergence.power == 3.0
    with pytest.raises(InstilError, match=r"divergence\.pover: unknown key; did you mean diver"):
        recipe(divergence={"kind": kind, "pover": 3.0})


def test_an_instance_is_passed_as_it_is():
    class Mine(LevelDistribution):
        def quantile(self, uniform, low, high):
            return uniform

    levels = Mine(sigma_max=3.0)
    method = Method(levels=levels, divergence=IKL(power=0.0)).replace(train={"steps": 3})
    assert method.levels is levels
    assert method.divergence == IKL(power=0.0)
    assert method.model_dump()["levels"]["kind"].endswith("<locals>.Mine")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere.parts:Reverse", "there is no module nowhere; install it, or run the command"),
        ("mine.nowhere:Reverse", "there is no module mine.nowhere; install it"),
        ("mine.parts:Reverze", "mine.parts has no Reverze"),
        ("mine.parts:number", "expected a subclass of distill.divergences.Divergence"),
        ("mine.parts:Fixed", "expected a subclass of distill.divergences.Divergence"),
        ("mine.parts:Half", "does not define __call__"),
        ("mine.broken:X", r"importing mine.broken fails at \S+broken.py line 3 (JSONDecodeError:"),
        ("mine.torn:X", r"importing mine.torn fails at \S+torn.py line 1 (SyntaxError:"),
        ("mine.needs:X", r"importing mine.needs fails at \S+needs.py line 1 (ModuleNotFoundError"),
        ("a b:X", "a b:X: expected package.module:Class"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(own, kind, message):
    with pytest.raises(InstilError, match=message.replace("(", r"\(")) as caught:
        recipe(divergence=kind)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"divergence: {kind}: ")


def test_wrong_options_of_it_are_named_like_ours(own):
    options = {"kind": "mine.parts:Reverse", "powr": 1, "power": -1.0}
    with pytest.raises(InstilError) as caught:
        recipe(divergence=options, train={"stepz": 1})
    assert str(caught.value).splitlines() == [
        "divergence.power: input should be greater than 0, got -1.0",
        "divergence.powr: unknown key; did you mean divergence.power?",
        "train.stepz: unknown key; did you mean train.steps?",
    ]


def test_python_and_yaml_mean_the_same():
    method = Method(train={"averages": [10_000], "steps": 3}, divergence="dmd")
    assert method.train.averages == (10_000.0,)
    with pytest.raises(InstilError) as caught:
        Method(train={"stepz": 3}, divergence={"kind": "sid", "alfa": 1})
    assert str(caught.value).splitlines() == [
        "divergence.alfa: unknown key; did you mean divergence.alpha?",
        "train.stepz: unknown key; did you mean train.steps?",
    ]
