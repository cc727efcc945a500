"""Full disks and folders that cannot be written: one sentence, and what was good stays."""

import errno
import json
import os
import resource
import subprocess
from contextlib import contextmanager
from pkgutil import resolve_name

import pytest
import torch
from PIL import Image
from torch import nn

from distill.__main__ import main
from distill.watch.curves import run_curves
from distill.watch.looks import Looks
from instil.base import checkpoint
from instil.base.errors import InstilError, command
from instil.base.files import write_text
from instil.base.runs.monitor import Monitor
from instil.base.runs.pictures import save_picture
from instructors.adapters.karras import Karras
from students.export import export
from students.one_step import OneStep

CARD = {"instructor": "x", "licence": "apache-2.0", "recipe": "a: 1\n", "figures": {"NFE": "1"}}


@contextmanager
def no_file_beyond(size):
    """The kernel refuses longer files, as a full disk does, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_checkpoint(folder):
    module = nn.Linear(40, 40)
    checkpoint.save(folder, 7, {"m": module}, {}, {})


def save_tensors(folder):
    checkpoint.write_tensors(folder / "best.safetensors", {"x": torch.rand(4000)})


def save_text(folder):
    write_text(folder / "text.json", "long" * 1000)


def save_image(folder):
    sheet = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    save_picture([sheet], folder / "picture.png")


def save_curves(folder):
    records = [{"step": k, "student": 1.0, "fake": 1.0} for k in range(9)]
    run_curves(records, {"instructor": {}}, folder / "curves.png")


SAVES = [save_checkpoint, save_tensors, save_text, save_image, save_curves]
TOO_LARGE = r"written \(.*File too large"


@pytest.mark.parametrize("save", SAVES)
def test_what_does_not_fit_leaves_what_was_there(tmp_path, save):
    save(tmp_path)
    before = content(tmp_path)
    for size in (0, 1000):
        with no_file_beyond(size), pytest.raises(OSError, match=TOO_LARGE) as found:
            save(tmp_path)
        assert content(tmp_path) == before
        assert str(found.value).startswith(str(tmp_path))
        assert "\n" not in str(found.value)
        assert ".partial" not in str(found.value)
    save(tmp_path)
    assert content(tmp_path).keys() == before.keys()


def test_an_export_that_does_not_fit_leaves_the_one_before(tmp_path, unet):
    student = OneStep(Karras(unet(), (1, 8, 8)), 2.5).eval()
    export(student, tmp_path / "student", CARD)
    before = content(tmp_path)
    with no_file_beyond(3000), pytest.raises(OSError, match=r"student: cannot be written"):
        export(student, tmp_path / "student", CARD)
    assert content(tmp_path) == before


def test_a_line_that_does_not_fit_is_forgotten(tmp_path):
    monitor = Monitor(tmp_path, steps=9, start=0, batch=1, active=True)
    monitor.write({"step": 1, "fd": {"0": 1.0}})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    for cut in (3, len('{"step": 2, "fd": {"0": 2.0}')):  # the second ends as a whole line does
        with (
            no_file_beyond(size + cut),
            pytest.raises(InstilError, match=r"metrics.jsonl: cannot be written \(File too large"),
        ):
            monitor.write({"step": 2, "fd": {"0": 2.0}})
        monitor = Monitor(tmp_path, steps=9, start=2, batch=1, active=True)  # resumed
        assert [record["step"] for record in monitor.records()] == [1]
    monitor.write({"step": 2})
    assert [record["step"] for record in monitor.records()] == [1, 2]


def test_a_command_says_what_the_system_refused(capsys):
    @command
    def full(argv=None):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    assert full([]) == 2
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'runs/x'; "
        "free some room, or choose a folder on another disk\n"
    )


class Disk:
    """A small file system of its own, which may be full or not writable."""

    def __init__(self, path):
        self.path = path

    def full(self):
        with (self.path / "filler").open("wb", buffering=0) as file:
            while os.statvfs(self.path).f_bavail:
                file.write(bytes(4096))

    def readonly(self):
        self.mount("remount,ro")

    def mend(self):
        self.mount("remount,rw")
        (self.path / "filler").unlink(missing_ok=True)

    def mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    found = Disk(tmp_path / "runs")
    found.path.mkdir()
    if not found.mount("size=8m"):
        pytest.skip("needs the right to mount")
    yield found
    subprocess.run(["umount", str(found.path)], check=True)


# What writes, the call before which the disk fails, what the sentence names.
STAGES = {
    "checkpoint": ("instil.base.checkpoint.save", 3, "checkpoints/step-00000004"),
    "metrics": ("instil.base.runs.monitor.Monitor.write", 4, "metrics.jsonl"),
    "picture": ("distill.watch.pictures.save_picture", 3, "samples/step-00000006.png"),
    "report": ("distill.distillation.write_json", 1, "report.json"),
    "curves": ("distill.distillation.run_curves", 1, "curves.png"),
    "export": ("distill.distillation.export", 1, "student"),
}
CASES = [(stage, fault) for stage in STAGES for fault in ("full", "readonly")]
CASES.remove(("metrics", "full"))  # a short line still fits into the last block


@pytest.mark.parametrize(("stage", "fault"), CASES)
def test_a_run_ends_with_one_sentence_and_goes_on(on_tiny, disk, monkeypatch, capsys, stage, fault):
    words = [*on_tiny, "train={steps: 6, batch: 8, averages: [0]}", "evaluation.extractor=null"]
    words += ["save_every=2", "log_every=2"]
    name, number, named = STAGES[stage]
    calls = []

    def failing(original):
        def call(*arguments, **options):
            calls.append(None)
            if len(calls) == number:
                getattr(disk, fault)()
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        # Of a disk with a file that is open for writing, the kernel refuses to take the right.
        patch.setattr("instil.base.runs.run.claim", lambda folder: None)
        patch.setattr(name, failing(resolve_name(name)))
        assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (sentence,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert error.splitlines()[-1] == sentence
    assert named in sentence
    reason = {"full": "No space left on device", "readonly": "Read-only file system"}[fault]
    assert reason in sentence
    run = disk.path / "digits"
    good = checkpoint.find(run / "checkpoints")[-1]
    for path in good.glob("*.safetensors"):
        checkpoint.read_tensors(path)
    assert not (run / "student").exists()
    disk.mend()
    assert not list(run.rglob("*.partial")), "what cannot be finished gives its room back"
    assert main([*words, "--resume"]) == 0
    assert (run / "checkpoints" / "step-00000006").exists()
    assert Image.open(run / "curves.png").width > 300
    assert (run / "student" / "README.md").exists()


MEASURED = (
    "train={steps: 4, batch: 8, averages: [0]}",
    "evaluation={every: 2, quick_samples: 20, samples: 20, seeds: 1, instructor_steps: 2}",
    "evaluation.extractor=digits",
    "evaluation.reference=digits:held-out",
    "save_every=1",
    "log_every=2",
)


def numbers(run):
    """What is in metrics.jsonl, but for speeds."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in each.items() if k != "images_per_second"} for each in records]


def test_what_a_kill_kept_from_being_measured_is_measured_after_the_resume(
    on_tiny, tmp_path, monkeypatch, weights, assert_same
):
    words = [*on_tiny, *MEASURED, "evaluation.patience=3"]
    assert main([*words, "name=whole"]) == 0
    look = Looks.look

    def killed(looks, step):
        if step == 2:
            raise KeyboardInterrupt  # step 2 is saved by now
        look(looks, step)

    with monkeypatch.context() as patch:
        patch.setattr(Looks, "look", killed)
        assert main([*words, "name=killed"]) == 130
    assert main([*words, "name=killed", "--resume"]) == 0
    whole, run = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    assert numbers(whole) == numbers(run)
    assert_same(weights(whole), weights(run))
    best = [sorted(path.name for path in (each / "best").iterdir()) for each in (whole, run)]
    assert best[0] == best[1]


def test_a_run_that_had_stalled_is_not_trained_on_when_resumed(on_tiny, tmp_path, weights):
    words = [*on_tiny, *MEASURED, "evaluation.patience=1", "optimizer.lr=1.0e-12"]
    words += ["train.steps=9", "evaluation.every=1"]
    assert main(words) == 0
    run = tmp_path / "runs" / "digits"
    before = numbers(run)
    assert before[-1]["step"] < 9
    assert main([*words, "--resume"]) == 0
    assert numbers(run) == before


def test_patience_may_begin_and_end_with_a_resume(on_tiny, tmp_path):
    words = [*on_tiny, *MEASURED, "evaluation.every=1"]
    assert main(words) == 0
    run = tmp_path / "runs" / "digits"
    assert main([*words, "--resume", "train.steps=5", "evaluation.patience=2"]) == 0
    assert numbers(run)[-1]["step"] == 5  # measurements from before are none that were waited for
    assert main([*words, "--resume", "train.steps=6"]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["student"]["step"] == 6  # and a best that was followed no longer is not shipped


def test_a_kill_while_old_checkpoints_go_leaves_no_half_of_one(tmp_path, monkeypatch):
    module = nn.Linear(2, 2)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"m": module}, {}, {})

    def killed(folder, ignore_errors=False):
        if folder.exists():
            next(folder.glob("*.safetensors")).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 3, {"m": module}, {}, {}, keep=2)
    for folder in tmp_path.glob("step-*"):
        checkpoint.restore(folder, {"m": module}, {})
    checkpoint.save(tmp_path, 4, {"m": module}, {}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
