"""Hostile files: a reduced run of the driver, and each crafted pickle by itself."""

import random

import pytest

from distill.__main__ import main as distill
from instil.base import data
from instil.base.config import read_overrides, read_yaml
from instil.base.errors import InstilError, one_message
from instructors.nvidia.checkpoint import read_checkpoint
from students.load import load
from students.source import Source
from tests.checks.hostile import __main__ as hostile
from tests.checks.hostile import crafted, mutations, pickles
from tests.checks.hostile.sandbox import Outcome, hunt

CASES = {"recipes": 100, "checkpoints": 60, "safetensors": 60, "pickles": 80, "images": 100}


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_each_case_is_accepted_or_refused(kind):
    found = hostile.outcomes(kind, CASES.get(kind, 80), seed=1)
    assert [each for each in found if each.verdict == "fault"] == []
    assert len(found) == CASES.get(kind, 80)
    assert {each.verdict for each in found} == {"accepted", "refused"}
    (again,) = hostile.outcomes(kind, 1, seed=1, first=7)
    assert (again.number, again.verdict) == (7, found[7].verdict)


@pytest.mark.parametrize("name", crafted.CORPUS)
def test_nothing_in_a_crafted_pickle_is_run(name, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "network.pkl"
    path.write_bytes(crafted.CORPUS[name](str(trace)))
    for read in (read_checkpoint, lambda path: load(Source(weights=str(path)))):
        with pytest.raises(InstilError) as caught:
            read(path)
        assert len(one_message(caught.value)) < 1_200
        assert not trace.exists()


def test_the_sound_pickles_of_the_driver_are_sound(tmp_path):
    for kind in pickles.KINDS:
        sound = min((pickles.GOLDEN / kind).glob("*.safetensors"))
        (tmp_path / "network.pkl").write_bytes(pickles.whole(sound, 4)[0])
        if kind == "stylegan2":
            load(Source(weights=str(tmp_path / "network.pkl")))
        else:
            read_checkpoint(tmp_path / "network.pkl")


def misbehave(number, folder):
    """One kind of fault for each number."""

    def read():  # noqa: RET503
        match number:
            case 0:
                raise KeyError("step")
            case 1:
                while True:
                    pass
            case 2:
                return bytearray(700 << 20)
            case 3:
                (folder / "part").write_text("x")
                raise InstilError("no")
            case 4:
                raise InstilError("no")
            case 5:
                import os

                os._exit(3)
            case 6:
                pass
            case 7:
                return bytearray(4 << 30)

    return read


def test_the_sandbox_sees_every_kind_of_fault(monkeypatch):
    monkeypatch.setattr("tests.checks.hostile.sandbox.SECONDS", 3.0)
    found = list(hunt(misbehave, range(8)))
    reasons = ("KeyError", "not done in", "MB", "left something", "no", "exit code 3", "", "Memory")
    assert [each.number for each in found] == list(range(8))
    assert [each.verdict for each in found] == [
        *["fault"] * 4,
        "refused",
        "fault",
        "accepted",
        "fault",
    ]
    for each, reason in zip(found, reasons, strict=True):
        assert isinstance(each, Outcome)
        assert reason in each.why


def test_damage_is_a_function_of_its_seed():
    content = bytes(range(256))
    one, two = (mutations.damage(content, random.Random(5)) for _ in range(2))
    assert one == two != content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "lists within lists more than 60 deep"),
        ("[" * 3000, "brackets that YAML cannot read"),
        (f"seed: {'9' * 5000}", "a number, a date or brackets"),
        ("name: 2001-99-99", "a number, a date or brackets"),
        ("name: 2001-01-01", "name: a date .* is no value of a recipe; put quotes around it"),
        ("1: 2", "1 is no word; put quotes around this key"),
        ("a: " + "x" * 200_000, "larger than 100,000 bytes"),
    ],
)
def test_yaml_that_is_no_recipe(text, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InstilError, match=message):
        read_yaml(tmp_path / "recipe.yaml")


def test_aliases_that_grow_are_counted(tmp_path):
    lines = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 20)]
    (tmp_path / "recipe.yaml").write_text("\n".join(["a0: &a0 [1]", *lines]))
    with pytest.raises(InstilError, match="more than 20,000 values"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(InstilError, match="more than 60 deep"):
        read_overrides(["a." * 100 + "b=1"])


def test_what_a_file_says_does_not_talk_to_the_terminal(capsys):
    assert one_message(InstilError("a\x1b[2Jb\nc")) == "a\\x1b[2Jb\nc"
    assert len(one_message(InstilError("x" * 10**6))) < 1_100
    assert one_message(InstilError("\n".join("abc" * 99))).endswith("and 267 more")
    assert distill(["nothing\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "x.png").write_bytes(mutations_of_images()["large.png"])
    with pytest.raises(InstilError, match="8000x8000 pixels are too many; make it smaller"):
        data.load(str(tmp_path))


def mutations_of_images():
    from tests.checks.hostile.images import bombs

    return bombs()


@pytest.mark.parametrize("words", [["--resume", "nowhere"], ["--resume", "x" * 300], ["x" * 300]])
def test_folders_that_cannot_be(words, capsys):
    assert distill(words) == 2
    assert capsys.readouterr().err.startswith("error: ")
