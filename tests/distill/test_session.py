"""Runs from the command line: what they leave, how they go on, what they refuse."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler
from PIL import Image
from safetensors.torch import load_file

from distill.__main__ import main
from distill.divergences import SiD
from instil.base.runs.accelerator import accelerator_for
from tests.tools import ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(on_tiny):
    """The command line of a small fast run; later words win."""
    return [
        *on_tiny,
        "train.steps=6",
        "train.batch=8",
        "train.averages=[0, 100]",
        "evaluation={samples: 40, seeds: 2, instructor_steps: 2, every: 3, quick_samples: 20}",
        "evaluation.extractor=digits",
        "evaluation.reference=digits:held-out",
        "log_every=2",
        "save_every=2",
    ]


def test_a_run_leaves_everything_a_person_needs(tiny, tmp_path, capsys):
    assert main([*tiny, "--json", str(tmp_path / "r.json")]) == 0
    run = tmp_path / "runs" / "digits"
    report = json.loads((run / "report.json").read_text())
    assert report == json.loads((tmp_path / "r.json").read_text())
    for who, nfe in (("instructor", 3), ("student", 1)):
        assert report[who]["nfe"] == nfe
        assert {"mean", "std"} <= report[who]["fd"].keys()
        assert (report[who]["fd"]["n"], report[who]["fd"]["seeds"]) == (40, 2)
        assert report[who]["images_per_second"] > 0
    assert report["fd_name"].startswith("FD-digits-")
    assert report["forwards_per_update"] == 9
    assert report["peak_memory_bytes"] > 0
    assert {"floor", "protocol", "seconds", "environment", "ratio"} <= report.keys()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "student" in r] == [2, 4, 6]
    assert [r["step"] for r in records if "fd" in r] == [0, 3, 6]
    assert Image.open(run / "samples" / "final.png").width > 300
    assert Image.open(run / "curves.png").width > 300
    assert "instructor: " in (run / "recipe.yaml").read_text()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]
    printed = capsys.readouterr()
    assert "student / instructor" in printed.out
    assert "9 forwards per update" in printed.out
    kept = [line.rstrip() for line in (run / "run.log").read_text().splitlines()]
    for line in (printed.out + printed.err).splitlines():
        assert line.rstrip() in kept


def test_a_run_is_never_overwritten(tiny, tmp_path):
    quick = [*tiny, "evaluation.extractor=null", "train.steps=1"]
    assert main(quick) == main(quick) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]


def test_the_same_seed_gives_the_same_run_and_another_another(tiny, tmp_path, weights, assert_same):
    quick = [*tiny, "evaluation.extractor=null"]
    for seed in (0, 0, 1):
        assert main([*quick, f"train.seed={seed}"]) == 0
    first, second, third = (weights(tmp_path / "runs" / f"digits{n}") for n in ("", "-2", "-3"))
    assert_same(first, second)
    name = "student.safetensors/denoiser.network.conv_in.weight"
    assert not torch.equal(first[name], third[name])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_equals_uninterrupted(tiny, tmp_path, accumulation, weights, assert_same):
    quick = [*tiny, "evaluation.extractor=null", f"train.accumulation={accumulation}"]
    quick += ["train.averages=[50]", "fake.updates=2"]
    assert main([*quick, "name=whole"]) == 0
    assert main([*quick, "name=parts", "train.steps=3", "save_every=3"]) == 0
    assert main([*quick, "name=parts", "--resume"]) == 0
    assert_same(weights(tmp_path / "runs" / "whole"), weights(tmp_path / "runs" / "parts"))
    lines = (tmp_path / "runs" / "parts" / "metrics.jsonl").read_text().splitlines()
    records = [(r["step"], "gauges" in r) for r in map(json.loads, lines)]
    assert records == sorted(set(records))


def test_another_objective_goes_on_from_an_earlier_run(tiny, tmp_path, assert_same):
    quick = [*tiny, "evaluation.extractor=null", "train.steps=2"]
    assert main([*quick, "name=sid"]) == 0
    sid = tmp_path / "runs" / "sid"
    average = sid / "checkpoints" / "step-00000002" / "average-100.safetensors"
    inits = [f"student.init={average}", f"fake.init={sid}"]
    assert main([*quick, *inits, "divergence=dmd", "name=dmd"]) == 0
    first = tmp_path / "runs" / "dmd" / "checkpoints" / "step-00000000"
    assert_same(*map(load_file, (average, first / "student.safetensors")))
    assert_same(
        *map(load_file, (average.with_name("fake.safetensors"), first / "fake.safetensors"))
    )
    average.unlink()  # a resumed run does not read it again
    assert main([*quick, *inits, "divergence=dmd", "name=dmd", "--resume", "train.steps=3"]) == 0


def test_resume_by_folder_needs_no_recipe(tiny, tmp_path):
    assert main([*tiny, "evaluation.extractor=null", "train.steps=2"]) == 0
    run = tmp_path / "runs" / "digits"
    assert main(["--resume", str(run), "train.steps=4"]) == 0
    assert (run / "checkpoints" / "step-00000004").exists()
    older = run / "checkpoints" / "step-00000002"
    meta = json.loads((older / "checkpoint.json").read_text())
    del meta["recipe"]["preflight"], meta["recipe"]["train"]["checkpointing"]  # an earlier version
    (older / "checkpoint.json").write_text(json.dumps(meta))
    assert main(["--resume", str(older), "train.steps=3"]) == 0


@pytest.mark.slow
def test_resume_under_two_processes(tiny, tmp_path, weights, assert_same):
    quick = [*tiny, "evaluation.extractor=null"]
    ranks.run("distill.__main__", [*quick, "name=whole"])
    said = ranks.run("distill.__main__", [*quick, "name=parts", "train.steps=4"])
    assert "2 process(es)" in said
    ranks.run("distill.__main__", [*quick, "name=parts", "--resume"])
    whole = weights(tmp_path / "runs" / "whole")
    assert_same(whole, weights(tmp_path / "runs" / "parts"))
    # One process draws the same numbers and differs by the order of float32 sums alone.
    assert main([*quick, "name=one"]) == 0
    one = weights(tmp_path / "runs" / "one")
    logged = []
    for name in ("whole", "one"):
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        logged.append([row["fake"] for row in map(json.loads, lines) if "fake" in row])
    torch.testing.assert_close(*logged, rtol=1e-4, atol=0)  # both are of the whole batch
    for name, tensor in whole.items():
        if name.startswith("student.") or name.startswith("fake."):
            torch.testing.assert_close(tensor, one[name], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny, tmp_path, weights, assert_same):
    words = [*tiny, "evaluation.extractor=null", "train.steps=60", "save_every=1"]
    assert main([*words, "name=whole"]) == 0
    command = [sys.executable, "-m", "distill", *words, "name=killed"]
    run = tmp_path / "runs" / "killed"
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: sums depend on the number of threads
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    while not (run / "checkpoints" / "step-00000003").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    saved = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert int(saved.name[5:]) < 60, "the run was too short to be killed"
    assert main([*words, "name=killed", "--resume"]) == 0
    assert_same(weights(tmp_path / "runs" / "whole"), weights(run))


def test_non_finite_gradients_stop_the_run_and_are_never_saved(tiny, tmp_path, capsys, weights):
    assert main([*tiny, "evaluation.extractor=null", "optimizer.lr=1e30"]) == 1
    error = capsys.readouterr().err
    assert "stopped: step" in error
    assert "gradients are not finite; last good checkpoint:" in error
    for name, tensor in weights(tmp_path / "runs" / "digits").items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("where", ["sample", "instructor", "loss"])
def test_what_is_no_number_stops_the_run_wherever_it_comes_from(
    tiny, tmp_path, capsys, weights, monkeypatch, where
):
    calls = 0

    def at_the_fourth(value):
        nonlocal calls
        calls += 1
        return value * float("nan") if calls == 4 else value

    plain = SiD.__call__

    def call(self, sample, sigma, instructor, fake):
        if where == "instructor":
            instructor = at_the_fourth(instructor)
        elif where == "sample":
            sample = at_the_fourth(sample)
        loss = plain(self, sample, sigma, instructor, fake)
        return at_the_fourth(loss) if where == "loss" else loss

    monkeypatch.setattr(SiD, "__call__", call)
    assert main([*tiny, "evaluation.extractor=null"]) == 1
    error = capsys.readouterr().err
    assert "stopped: step 4 or just before: gradients are not finite" in error
    assert str(tmp_path / "runs" / "digits" / "checkpoints" / "step-00000002") in error
    for name, tensor in weights(tmp_path / "runs" / "digits").items():
        assert tensor.isfinite().all(), name


def test_bf16_trains_and_stays_near_float32(tiny, tmp_path):
    quick = [*tiny, "evaluation.extractor=null", "train.steps=3"]
    assert main([*quick, "name=full"]) == 0
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*quick, "name=half", "train.precision=bf16"]) == 0
    records = []
    for name in ("full", "half"):
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        records.append([r for r in map(json.loads, lines) if "fake" in r][-1])
    assert records[0]["fake"] == pytest.approx(records[1]["fake"], rel=0.05)
    assert records[0]["fake"] != records[1]["fake"]


def test_trackers_follow_each_run_in_its_own_folder(tiny, tmp_path):
    words = [*tiny, "evaluation.extractor=null", "trackers=[tensorboard]"]
    assert main([*words, "train.steps=1"]) == 0
    assert main([*words, "train.steps=2", "--resume"]) == 0
    runs = tmp_path / "runs"
    assert [path.name for path in runs.iterdir()] == ["digits"]
    assert len(list((runs / "digits" / "instil").glob("events.out.tfevents*"))) == 2
    shown = next((runs / "digits" / "instil").glob("*/hparams.yml"))
    assert "train.batch: 8" in shown.read_text()


@pytest.mark.parametrize(
    ("tracker", "said"), [("trackio", "pip install 'instil[trackio]'"), ("wandb", "wandb login")]
)
def test_trackers_that_could_not_follow_are_refused(
    tiny, tmp_path, monkeypatch, capsys, tracker, said
):
    present = {"trackio": None, "wandb": "here"}
    monkeypatch.setattr("instil.base.runs.trackers.find_spec", present.get)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*tiny, f"trackers=[{tracker}]"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "true", "plain data parallelism"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "expected bf16 or no"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "train.compile=true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulation"),
        ("MASTER_PORT", "29500", "torchrun --standalone"),
    ],
)
def test_what_a_launcher_asks_and_a_run_cannot_give_is_refused(
    tiny, tmp_path, monkeypatch, capsys, name, value, said
):
    monkeypatch.setenv(name, value)
    assert main(tiny) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_cache_that_cannot_be_written_is_done_without(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()  # a folder cannot be made below it, even by root
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "file" / "cache"))
    assert main([*tiny, "train.steps=1"]) == 0
    assert "is done without" in capsys.readouterr().err
    assert (tmp_path / "runs" / "digits" / "report.json").exists()


def test_dry_run_says_what_it_would_cost_and_does_nothing(tiny, tmp_path, capsys):
    assert main([*tiny, "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert "9 forward-equivalents" in plan["per update"]
    assert "6 of 8 images, 48 in all" in plan["updates"]
    assert not (tmp_path / "runs").exists()
    assert "nothing was run" in capsys.readouterr().out


def corrupt(path):
    file = path / "instructor" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def forbid(path):
    (path / "runs").write_text("a file where the folder must go")


BAD = {
    "missing file": (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
    "unknown recipe": (["digitz"], "digitz: no such recipe; did you mean digits?"),
    "unknown key": (["train.stepz=3"], "train.stepz: unknown key; did you mean train.steps?"),
    "wrong type": (
        ["train.steps=many"],
        "train.steps: input should be a valid integer, got 'many'",
    ),
    "negative sigma": (
        ["student.sigma=-1"],
        "student.sigma: input should be greater than 0, got -1",
    ),
    "sigma out of range": (["student.sigma=100"], "student.sigma: 100.0 lies outside"),
    "unknown divergence": (["divergence=kl"], "divergence: unknown kind 'kl'"),
    "missing instructor": (["instructor=nowhere"], "nowhere: expected the folder"),
    "wrong channel count": (
        ["evaluation.reference={tmp}/colour.npz"],
        "made for images of the shape (1, 8, 8), got (3, 8, 8)",
    ),
    "extractor of another shape": (["evaluation.extractor=vgg"], "extractor vgg: expected"),
    "batch that does not divide": (["train.accumulation=3"], "train.batch: 8 does not divide"),
    "two recipes": (["digits"], "digits digits: expected one recipe"),
    "warm start from nothing": (["student.init={tmp}"], "holds no checkpoint; expected a run"),
    "warm start from other weights": (
        ["fake.init=eval/extractors/digits.safetensors"],
        "fake.init: eval/extractors/digits.safetensors: holds other weights: missing network.",
    ),
    "nothing to resume": (["--resume"], "no run of that name to resume"),
    "resume from nowhere": (["--resume", "{tmp}"], "no complete checkpoint there"),
    "corrupted safetensors": (corrupt, "weights cannot be loaded"),
    "unwritable run folder": (forbid, "cannot be created"),
    "a report without a folder": (
        ["--json", "nowhere/r.json"],
        "--json nowhere/r.json: there is no folder nowhere",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tiny, tmp_path, capsys, case):
    import numpy as np

    words, message = BAD[case]
    np.savez(tmp_path / "colour.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    if callable(words):
        words(tmp_path)
        words = []
    words = [word.format(tmp=tmp_path) for word in words]
    first = [] if words and words[0] in ("nowhere.yaml", "digitz") else tiny
    before = sorted(tmp_path.rglob("*"))
    assert main([*first, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path for path in left if "cache" not in path.parts] == []


def test_a_label_for_an_unconditional_model_cannot_be_asked_for(tiny, capsys):
    assert main([*tiny, "student.label=3"]) == 2
    assert "student.label: unknown key" in capsys.readouterr().err


def test_a_checkpoint_of_another_recipe_or_instructor_is_refused(tiny, unet, tmp_path, capsys):
    quick = [*tiny, "evaluation.extractor=null", "train.steps=2"]
    assert main(quick) == 0
    assert main([*quick, "--resume", "divergence=dmd", "optimizer.lr=1.0e-2"]) == 2
    error = capsys.readouterr().err
    assert "divergence.kind: was sid, is dmd" in error
    assert "optimizer.lr: was 0.0003, is 0.01" in error
    assert "Only these may change: train.steps" in error
    torch.manual_seed(1)
    pipeline = ConsistencyModelPipeline(unet(classes=3), EDMEulerScheduler())
    pipeline.save_pretrained(tmp_path / "instructor")
    assert main([*quick, "--resume"]) == 2
    assert "instructor_weights: was" in capsys.readouterr().err


def test_fp16_is_refused_with_a_reason(tiny, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert main(tiny) == 2
    assert "precision fp16" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1", "2"])
def test_sharded_networks_are_refused_with_what_to_do(tiny, monkeypatch, capsys, version):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FSDP: accelerate gives it one network with one optimizer")
    assert "fake.lora" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_two_processes_measure_as_one_does(tiny, tmp_path):
    ranks.run("distill.__main__", [*tiny, "evaluation.patience=9", "name=two"])
    assert main([*tiny, "evaluation.patience=9", "name=one"]) == 0
    found = []
    for name in ("one", "two"):
        run = tmp_path / "runs" / name
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        quick = [record["fd"] for record in records if "fd" in record]
        found.append((quick, json.loads((run / "report.json").read_text())))
    (one, report), (two, other) = found
    assert one[0] == two[0]  # before the first update the weights are the same to the bit
    assert len(one) == len(two) == 3
    assert report["instructor"]["fd"] == other["instructor"]["fd"]
    assert report["floor"] == other["floor"]
    assert other["student"]["fd"]["mean"] == pytest.approx(
        report["student"]["fd"]["mean"], rel=0.01
    )
    assert other["processes"] == 2


@pytest.mark.parametrize(("capability", "slow"), [("avx512_f", True), ("avx512_bf16", False)])
def test_bf16_on_a_processor_that_has_no_instructions_for_it(monkeypatch, capsys, capability, slow):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: True})
    accelerator_for("bf16", (), "runs")
    assert ("this processor has no instructions for it" in capsys.readouterr().err) is slow


@pytest.mark.slow
def test_as_typed_by_somebody_who_knows_accelerate(tiny, tmp_path):
    command = ["accelerate", "launch", "--num_processes", "1", "-m", "distill", *tiny]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "student / instructor" in done.stdout


@pytest.fixture
def launch():
    """Run launch.sh in the environment of the tests."""

    def run(*words, **env):
        return subprocess.run(
            ["bash", str(ROOT / "launch.sh"), *words],
            env=os.environ | {"VIRTUAL_ENV": sys.prefix} | env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_launch_refuses_a_wrong_key_before_anything_slow(launch):
    done = launch("digits", "train.stepz=3")
    assert done.returncode == 2
    assert done.stderr == "error: train.stepz: unknown key; did you mean train.steps?\n"


@pytest.mark.slow
def test_launch_starts_as_many_processes_as_it_is_told(launch, tiny):
    done = launch(*tiny, NUM_PROCESSES="2")
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stderr
    assert "student / instructor" in done.stdout


@pytest.mark.slow
def test_the_demo_comes_near_its_instructor_early(tmp_path):
    words = ["train.steps=200", "evaluation.every=200", "evaluation.samples=2000"]
    assert main([*words, "evaluation.seeds=1", f"output={tmp_path}"]) == 0
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    lines = (tmp_path / "digits" / "metrics.jsonl").read_text().splitlines()
    start = next(json.loads(line)["fd"] for line in lines if '"fd"' in line)
    assert report["student"]["fd"]["mean"] < 0.1 * min(start.values())
    assert report["student"]["label_accuracy"]["mean"] > 0.9
    assert report["student"]["copies"]["mean"] < 0.01
