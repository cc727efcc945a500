"""Runs are stopped, resumed and written by one process at a time, whatever sends the signal."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from instil.base import checkpoint
from instil.base.errors import InstilError, Stopped, command
from instil.base.runs import writer
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.recipe import RunRecipe
from instil.base.runs.run import Report, Run

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Line:
    """A state of two numbers, whose update k adds a function of k."""

    def __init__(self):
        torch.manual_seed(0)
        self.network, self.step = nn.Linear(1, 1), 0
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)

    def modules(self):
        return {"network": self.network}

    def optimizers(self):
        return {"optimizer": self.optimizer}


def updates(state, steps, during=lambda step: None):
    while state.step < steps:
        loss = (self := state.network)(torch.tensor([[float(state.step)]])).square().sum()
        self.zero_grad()
        loss.backward()
        during(state.step + 1)
        state.optimizer.step()
        state.step += 1
        yield Report(state.step, {"loss": loss.detach()}, loss.detach())


def open_run(root, resume=None, steps=6, **changes):
    recipe = RunRecipe(
        **{"name": "a", "output": str(root), "log_every": 1, "save_every": 3} | changes
    )
    return Run(recipe, steps, 1, Line(), {}, resume, accelerator_for("no", (), str(root)))


@pytest.fixture(autouse=True)
def default_signals():
    """As in a terminal: a shell's background jobs inherit that INT and HUP are ignored."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    for name in SIGNALS:
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(getattr(signal, name), default)
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def finish(run, during=lambda step: None, after=lambda step: None):
    with run.writing():
        for report in run.follow(updates(run.state, run.monitor.steps, during)):
            after(report.step)
        after("the end")
    return run


def sending(name, moment, times=1):
    def send(step):
        if step == moment:
            for _ in range(times):
                os.kill(os.getpid(), getattr(signal, name))

    return send


def steps_of(run):
    return [json.loads(line)["step"] for line in run.monitor.path.read_text().splitlines()]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("moment", ["update", "look", "end"])
def test_a_signal_costs_no_update(tmp_path, weights, assert_same, name, moment):
    whole = finish(open_run(tmp_path / "whole"))
    run = open_run(tmp_path)
    moments = {
        "update": {"during": sending(name, 5)},
        "look": {"after": sending(name, 4)},
        "end": {"after": sending(name, "the end")},
    }
    handlers = [signal.getsignal(getattr(signal, each)) for each in SIGNALS]
    with pytest.raises(Stopped) as stopped:
        finish(run, **moments[moment])
    assert handlers == [signal.getsignal(getattr(signal, each)) for each in SIGNALS]
    step = {"update": 5, "look": 4, "end": 6}[moment]
    assert f"{name}: stopped after update {step} of 6" in str(stopped.value)
    assert f"--resume {run.folder}" in str(stopped.value)
    assert checkpoint.find(run.folder / "checkpoints")[-1].name == f"step-{step:08d}"
    resumed = finish(open_run(tmp_path, resume=""))
    assert_same(weights(whole.folder), weights(resumed.folder))
    assert steps_of(resumed) == steps_of(whole) == [1, 2, 3, 4, 5, 6]


def test_a_command_that_a_signal_stopped_says_so_by_its_code(capsys):
    @command
    def main(argv=None):
        raise Stopped("SIGUSR1: stopped", signal.SIGUSR1)

    assert main([]) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == "SIGUSR1: stopped\n"


def test_the_second_signal_ends_the_process(tmp_path, monkeypatch):
    class Exit(Exception):
        pass

    def leave(code):
        raise Exit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Exit, match=str(128 + signal.SIGTERM)):
        finish(open_run(tmp_path), during=sending("SIGTERM", 2, times=2))


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert finish(open_run(tmp_path), during=sending("SIGHUP", 2)).state.step == 6
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_launcher_that_is_gone_stops_its_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LAUNCHED", True)
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent if run.state.step < 4 else 1)
    run = open_run(tmp_path)
    with pytest.raises(Stopped, match="SIGTERM: stopped after update 4"):
        finish(run)


def test_what_is_no_number_is_not_saved_for_a_signal(tmp_path):
    run = open_run(tmp_path, log_every=9, save_every=9)

    def broken(step):
        if step == 2:
            run.state.network.weight.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="step-00000000"):
        finish(run, during=lambda step: (broken(step), sending("SIGTERM", 3)(step)))


def test_a_run_has_one_writer(tmp_path):
    run = finish(open_run(tmp_path))
    source = (
        "import sys, filelock\n"
        "lock = filelock.FileLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print(end='.', flush=True)\n"
        "sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", source, str(run.folder / writer.LOCK)]
    with subprocess.Popen(words, **pipes) as other:
        assert other.stdout.read(1) == "."
        # This process had the lock before, so its own words are still there.
        with pytest.raises(InstilError, match=f"being written by process {os.getpid()} on "):
            open_run(tmp_path, resume="")
        other.kill()  # which gives the lock back
    open_run(tmp_path, resume="")


def test_later_checkpoints_are_set_aside(tmp_path, weights, assert_same):
    whole = finish(open_run(tmp_path, save_every=1, keep=9))
    expected = weights(whole.folder)
    older = whole.folder / "checkpoints" / "step-00000002"
    run = open_run(tmp_path, resume=str(older), save_every=1, keep=2)
    with pytest.raises(Stopped):
        finish(run, during=sending("SIGTERM", 4))
    names = [path.name for path in checkpoint.find(run.folder / "checkpoints")]
    assert names == ["step-00000003", "step-00000004"]
    assert sorted(path.name for path in run.folder.glob("set-aside/*/*")) == [
        "metrics.jsonl",
        *(f"step-0000000{step}" for step in range(3, 7)),
    ]
    resumed = finish(open_run(tmp_path, resume=""))
    assert steps_of(resumed) == [1, 2, 3, 4, 5, 6]
    assert_same(expected, weights(resumed.folder))


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    run = finish(open_run(tmp_path))
    text = (run.folder / "recipe.yaml").read_text()
    with pytest.raises(InstilError, match="6 updates are done and the recipe asks for 5"):
        open_run(tmp_path, resume="", steps=5)
    assert (run.folder / "recipe.yaml").read_text() == text


def test_a_finished_run_says_so(tmp_path, capsys):
    finish(open_run(tmp_path))
    finish(open_run(tmp_path, resume=""))
    assert "all 6 updates are done" in capsys.readouterr().err


def test_a_run_is_found_by_the_name_in_its_recipe(tmp_path):
    for name in ("a", "a-2", "a"):
        open_run(tmp_path, name=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-2", "a-3"]
    assert open_run(tmp_path, resume="").folder.name == "a-3"
    (tmp_path / "a-3").rename(tmp_path / "b")
    assert open_run(tmp_path, resume="").folder.name == "a"
    assert open_run(tmp_path, resume="", name="a-2").folder.name == "a-2"


def test_a_new_run_that_fails_before_its_first_update_leaves_nothing(tmp_path):
    def fail(step):
        raise RuntimeError("no")

    for resume, left in ((None, 0), ("", 1)):
        if resume is not None:
            open_run(tmp_path)
        with pytest.raises(RuntimeError, match="no"):
            finish(open_run(tmp_path, resume=resume), during=fail)
        assert len(list(tmp_path.iterdir())) == left


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "a smaller batch"),
        (MemoryError(), "a smaller batch"),
        (OSError(24, os.strerror(24)), "ulimit -n"),
        (InstilError(f"x: cannot be written ({os.strerror(28)})"), "free some room"),
    ],
)
def test_what_a_machine_has_too_little_of_is_one_sentence(capsys, error, said):
    @command
    def main(argv=None):
        raise error

    assert main([]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
