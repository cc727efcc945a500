"""The commands of a transfer, and what a preflight may change in a distillation."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from distill.__main__ import main as distill
from distill.preflight import overrides_from, read
from distill.recipe import Recipe
from eval.__main__ import main as evaluate
from eval.curves import contributions
from eval.questions import Transfer as Question
from eval.settings import Settings
from eval.transfer.cross_validate import cross_validate
from instil.base import data
from instil.base.errors import InstilError
from instil.base.levels import KarrasUniform, LogNormal
from instil.base.runs.accelerator import accelerator_for
from instructors.__main__ import main as instructors
from instructors.denoiser import Condition
from instructors.files.sources import network_folder
from instructors.files.weights import weights_hash
from instructors.load import load
from instructors.lora import Lora
from instructors.transfer import ARMS
from instructors.transfer.adapt import Target, adapt, save
from instructors.transfer.arms import Transfer

QUICK = ("steps=12", "batch=8", "stopping.every=4", "optimizer.warmup=1")


@pytest.fixture(scope="module")
def flight(tmp_path_factory):
    """A preflight of 24 digits by two arms, trained for next to nothing."""
    out = tmp_path_factory.mktemp("flight") / "p.json"
    words = ["--instructor", "digits-0-4", "--target", "digits:5-9", "--out", str(out)]
    more = ["--samples", "24", "--folds", "2", "--arms", "scratch,finetune", "--draws", "1"]
    assert evaluate(["preflight", *words, *more, *QUICK]) == 0
    return out


def test_what_a_preflight_writes(flight):
    facts = json.loads(flight.read_text())
    made = flight.parent / "p-instructor"
    assert facts["distill"]["instructor"] == "p-instructor"
    assert facts["distill"]["sha256"] == weights_hash(made / "unet")
    assert facts["distill"]["T_eps"] == facts["horizon"]["T_eps"]["value"]
    arms = facts["transfer"]["arms"]
    # a source that knows digits is far ahead of a network that has seen a dozen updates
    assert facts["transfer"]["best"] == "finetune"
    assert facts["transfer"]["negative_transfer"] is False
    gain = arms["scratch"]["value"] - arms["finetune"]["value"]
    assert facts["transfer"]["gain"]["value"] == pytest.approx(gain)
    assert facts["transfer"]["target"]["count"] == 24
    assert all(each["stderr"] > 0 for each in arms.values())
    assert facts["latents"]["target"]["images"] == "digits:5-9"  # the source is what the card names
    adapted, source = load(str(made)), load("digits-0-4")
    assert (adapted.denoiser.classes, adapted.card.licence) == (5, source.card.licence)
    assert adapted.card.sha256 != source.card.sha256


def test_a_preflight_chooses_the_instructor(flight, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["digits-0-4", f"preflight={flight}", "--dry-run", "--json", "plan.json"]
    assert distill(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"instructor={flight.parent / 'p-instructor'}" in first
    assert "evaluation.reference=instructor" in first
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert str(flight.parent / "p-instructor") in plan["instructor"]


def test_another_instructor_is_refused(flight, capsys):
    words = ["digits-0-4", f"preflight={flight}", "instructor=digits", "--dry-run"]
    assert distill(words) == 2
    assert "digits has other weights" in capsys.readouterr().err


def test_changed_weights_are_refused(flight, capsys, tmp_path):
    copied = tmp_path / "p.json"
    shutil.copy(flight, copied)
    shutil.copytree(load("digits").card.folder, tmp_path / "p-instructor")
    assert distill(["digits-0-4", f"preflight={copied}", "--dry-run"]) == 2
    assert "has other weights" in capsys.readouterr().err


def settings(**changes):
    facts = {"instructor": "other", "sha256": "0" * 12, "T_eps": 13.8, "sigma_range": [0.002, 80.0]}
    return Settings.model_validate_json(json.dumps(facts | {"distil": True} | changes))


@pytest.mark.parametrize(
    ("levels", "far", "expected"),
    [
        (KarrasUniform(t_min=0.2), 13.8, []),  # which reaches 24
        (KarrasUniform(t_min=0.2), 40.0, ["levels.t_min=0.0"]),
        (KarrasUniform(t_min=0.2, sigma_max=10.0), 8.0, ["levels.t_min=0.0"]),
        (LogNormal(sigma_max=5.0), 13.8, ["levels.sigma_max=13.8"]),
        (LogNormal(sigma_max=50.0), 13.8, []),  # never lowered
        (LogNormal(), 13.8, []),
        (LogNormal(sigma_max=50.0), 500.0, ["levels.sigma_max=80"]),  # the network knows no more
    ],
)
def test_training_reaches_the_horizon(levels, far, expected):
    recipe = Recipe(name="x", instructor="other", levels=levels)
    assert overrides_from(recipe, settings(T_eps=far)) == expected


def test_the_command_line_comes_last(flight, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["digits-0-4", f"preflight={flight}", "evaluation.reference=digits", "--check"]
    assert distill(words) == 0
    capsys.readouterr()
    assert distill([*words[:-1], "--show"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"reference: digits +# command line", shown)
    assert re.search(rf"instructor: \S+p-instructor +# {flight}", shown)


def test_the_same_seed_gives_the_same_answer():
    images = data.load("digits:5-9")
    recipe = Transfer(steps=6, batch=8)
    question = Question(
        instructor="digits-0-4",
        target="digits:5-9",
        arms=("finetune",),
        folds=2,
        samples=12,
        draws=1,
    )
    found = []
    for _ in range(2):
        accelerator = accelerator_for(None, (), ".")
        answer = cross_validate(load("digits-0-4"), images, question, recipe, accelerator)
        found.append(contributions(answer.losses["finetune"].model))
    assert torch.equal(*found)


def test_any_pixel_model_is_adapted_in_its_own_format(unet, tmp_path):
    # a discrete schedule, no classes; the images have two
    network = unet(channels=3)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "source")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", images=pixels, labels=np.arange(12) % 2)
    words = ["--source", str(tmp_path / "source"), "--data", str(tmp_path / "t.npz")]
    more = ["--arm", "frozen", "--out", str(tmp_path / "made"), "steps=3", "batch=4"]
    assert instructors(["transfer", *words, *more]) == 0
    made, source = load(str(tmp_path / "made")), load(str(tmp_path / "source"))
    assert made.denoiser.classes == 2
    own, theirs = (each.denoiser.network.state_dict() for each in (made, source))
    for name, tensor in theirs.items():  # matrices and kernels stayed
        assert torch.equal(own[name], tensor) or tensor.ndim == 1, name
    pipeline = DDPMPipeline.from_pretrained(str(tmp_path / "made"))
    assert pipeline.unet.config.num_class_embeds == 2
    noisy, sigma = torch.randn(2, 3, 8, 8), torch.full((2,), 1.0)
    made.denoiser(noisy, sigma, Condition(label=torch.tensor([0, 1])))


@pytest.mark.parametrize("arm", ARMS)
def test_what_was_adapted_is_what_is_saved(arm, tmp_path):
    source, images = load("digits-0-4"), data.load("digits:5-9").select(torch.arange(12))
    accelerator = accelerator_for(None, (), ".")
    target = Target.of(source, images, accelerator.device)
    recipe = Transfer(steps=3, batch=8, lora=Lora(rank=2), stopping=None)
    adapted, updates = adapt(source.denoiser, target, arm, recipe, accelerator)
    noisy, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    condition = Condition(label=torch.tensor([0, 3, 4]))
    expected = adapted(noisy, sigma, condition)
    save(adapted, source, target, arm, updates, tmp_path / "made", "a command")
    found = load(str(tmp_path / "made")).denoiser(noisy, sigma, condition)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, source.denoiser(noisy, sigma, condition))


WRONG = {
    "arm": (["--arms", "scratch,lora9"], "--arms.1: input should be 'scratch', 'frozen'"),
    "twice": (["--arms", "scratch,scratch"], "each once"),
    "one fold": (["--folds", "1"], "--folds: input should be greater than or equal to 2, got 1"),
    "many folds": (["--folds", "30", "--samples", "20"], "30 of 20 samples"),
    "few": (["--samples", "3"], "--samples: input should be greater than or equal to 4, got 3"),
    "draws": (["--draws", "0"], "--draws: input should be greater than 0, got 0"),
    "key": (["stepz=3"], "stepz: unknown key; did you mean steps?"),
    "value": (["kappa=-1"], "kappa: input should be greater than 0"),
    "no such target": (["--target", "nowhere"], "nowhere: no such file"),
    "seen": (["--target", "digits:0-4"], "share 601 samples"),
    "shape": (["--target", "{wide}"], r"(1, 8, 8)"),
    "no such instructor": (["--instructor", "nobody"], "nobody: expected the folder"),
    "folder": (["--out", "{folder}/no/p.json"], "make it first"),
}


@pytest.mark.parametrize("command", ["transfer", "preflight"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(case, command, tmp_path, capsys):
    words, message = WRONG[case]
    np.savez(tmp_path / "wide.npz", images=np.arange(729, dtype=np.uint8).reshape(9, 9, 9))
    places = {"wide": tmp_path / "wide.npz", "folder": tmp_path}
    default = {"--instructor": "digits-0-4", "--target": "digits:5-9", "--out": tmp_path / "o.json"}
    given = [word.format(**places) for word in words]
    defaults = [str(w) for k, v in default.items() if k not in given for w in (k, v)]
    assert evaluate([command, *defaults, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


BROKEN = {
    "no file": (None, "cannot be read"),
    "no json": ("{", "is not what"),
    "a list": ("[]", "is not what"),
    "deep": ("[" * 100_000, "is not what"),
    "other": ("{}", "is not what"),
    "cut": ('{"distill": {"distil": true}, "verdict": ""}', "instructor: Field required"),
    "infinite": (
        '{"distill": {"instructor": "digits", "sha256": "000000000000", "T_eps": 1e999, '
        '"sigma_range": [1, 2], "distil": true}, "verdict": ""}',
        "T_eps",
    ),
    "no": (
        '{"distill": {"instructor": "digits", "sha256": "000000000000", "T_eps": 1, '
        '"sigma_range": [1, 2], "distil": false}, "verdict": "Do not distil this."}',
        "says: Do not distil this",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_preflights(case, tmp_path):
    text, message = BROKEN[case]
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InstilError, match=message):
        read(str(path))


def test_without_images_the_horizon_alone_is_asked(tmp_path, capsys):
    out = tmp_path / "p.json"
    with pytest.raises(SystemExit):  # no --out
        evaluate(["preflight", "--instructor", "digits"])
    capsys.readouterr()
    assert (
        evaluate(["preflight", "--instructor", "digits", "--source", "digits", "--out", str(out)])
        == 2
    )
    assert "give both, or neither" in capsys.readouterr().err


def test_hashes_are_those_of_the_card():
    assert weights_hash(network_folder("digits-0-4")) == load("digits-0-4").card.sha256
