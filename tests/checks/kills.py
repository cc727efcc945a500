"""Kill a run of the digits at random moments, resume it, and compare it with one left in peace.

    python -m tests.checks.kills [--kills 50] [--processes 1] [--torchrun] [--seed 0]

Each run is killed by SIGKILL at a moment drawn uniformly from the time that a whole one takes after
its imports. Every checkpoint that can be seen then must be the uninterrupted run's, to the bit; so
must all weights and numbers be when it was resumed and has ended. Of two processes one is killed,
and the other must not go on waiting: neither under torchrun, which would end it, nor alone.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.harness import Rows, command
from distill.__main__ import RECIPES
from distill.recipe import Recipe
from instil.base.config import load_recipe
from instil.base.runs.monitor import note
from tests.checks.processes import Forked, Launched, Processes, warm
from tests.checks.traces import PHASES, differences, fingerprint, phase

# As short as a run can be that passes through everything; a save after each update, to be hit.
RUN = (
    "digits",
    "train={steps: 8, batch: 8, averages: [0, 10000]}",
    "evaluation={every: 4, quick_samples: 40, samples: 80, seeds: 1, instructor_steps: 2,"
    " patience: 3, extractor: digits, reference: digits:held-out, held_out: null}",
    "save_every=1",
    "log_every=2",
    "pictures_every=8",
)
PATIENCE = 300  # seconds after which a run is held to hang
SOON = 60  # seconds within which the other process must have noticed
NOTHING = "without --resume it starts"  # said where a run was killed before it had a folder


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        phase: Where it fell.
        victim: What was killed.
        seconds: After the start.
        ended: Whether all its processes had ended soon after.
        whole: Whether every checkpoint that could be seen was the reference's.
        resumed: Whether `--resume` went on; if not, it said that there is nothing to resume.
        identical: Whether the finished run is the reference.
    """

    phase: str
    victim: str
    seconds: float
    ended: bool
    whole: bool
    resumed: bool
    identical: bool


class Driver:
    """Starts, kills and compares runs.

    Args:
        folder: For everything.
        processes: Of each run.
        torchrun: Whether it starts them; else they are forked, so that imports are made once.
        seed: Of the moments and victims.
    """

    def __init__(self, folder: Path, processes: int, torchrun: bool, seed: int) -> None:
        self.folder, self.random = folder, Random(seed)
        self.processes, self.torchrun = processes, torchrun
        self.words = [*RUN, f"output={folder}"]
        self.recipe = load_recipe(Recipe, self.words[0], self.words[1:], RECIPES)
        if not torchrun:
            warm(self.words)
        self.reference = folder / "reference"
        self.finish("reference", "keep=99")
        self.prints = fingerprint(self.reference)
        self.seconds = self.finish("again")  # with figures of the instructor cached, as all others
        if fingerprint(folder / "again") != self.prints:
            raise RuntimeError("two uninterrupted runs differ: there is nothing to compare with")

    def finish(self, name: str, *words: str) -> float:
        """Carry a run out; returns its seconds.

        Raises:
            RuntimeError: It failed.
        """
        process = self._begin(name, *words)
        began = time.perf_counter()
        self._end(name, process)
        return time.perf_counter() - began

    def kill(self, name: str) -> Kill:
        """Kill a run at a random moment, resume it, and compare."""
        run = self.folder / name
        process, victim, seconds = self._strike(name)
        ended = process.wait(SOON) is not None
        where = phase(run, self.recipe)
        partly = differences(run, self.reference)
        resumed = self._resume(name)
        prints = fingerprint(run)
        other = [
            f"{name}: another {key}"
            for key in self.prints.keys() | prints.keys()
            if prints.get(key) != self.prints.get(key)
        ]
        for fault in [*partly, *other]:
            note(fault)
        shutil.rmtree(run)
        return Kill(where, victim, round(seconds, 2), ended, not partly, resumed, not other)

    def _strike(self, name: str) -> tuple[Processes, str, float]:
        """A run in which something was killed at a random moment, what, and after which seconds."""
        while True:
            process = self._begin(name)
            seconds = self.random.uniform(0, self.seconds)
            if process.wait(seconds) is None and (victim := process.kill(self.random)):
                return process, victim, seconds
            process.wait(PATIENCE)
            shutil.rmtree(self.folder / name)  # it was faster than the one that was timed

    def _start(self, name: str, *words: str) -> Processes:
        kind = Launched if self.torchrun else Forked
        return kind([*self.words, f"name={name}", *words], self._log(name), self.processes)

    def _begin(self, name: str, *words: str) -> Processes:
        """Start a run; returns when its imports are over."""
        process = self._start(name, *words)
        while self.torchrun and not (self.folder / name).exists() and process.wait(0.05) is None:
            pass
        return process

    def _end(self, name: str, process: Processes) -> None:
        code = process.wait(PATIENCE)
        if code != 0:
            raise RuntimeError(f"{name}: ended with {code}\n{self._log(name).read_text()}")

    def _resume(self, name: str) -> bool:
        """Go on with a run that was killed, or start it again where there is nothing of it."""
        process = self._start(name, "--resume")
        if process.wait(PATIENCE) == 2 and NOTHING in self._log(name).read_text():
            self.finish(name)
            return False
        self._end(name, process)
        return True

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Kill as often as asked."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INSTIL_CACHE"] = f"{folder}/cache"
        driver = Driver(Path(folder), arguments.processes, arguments.torchrun, arguments.seed)
        kills = []
        for number in range(arguments.kills):
            kills.append(driver.kill(f"kill-{number}"))
            note(f"{number + 1}/{arguments.kills}: {kills[-1]}")
    facts = {"whole_run_seconds": round(driver.seconds, 1), "kills": [asdict(k) for k in kills]}
    parts = {name: [k for k in kills if k.phase == name] for name in PHASES}
    rows = [_row(name, some) for name, some in parts.items() if some]
    return [*rows, _row("all", kills)], facts


def _row(name: str, kills: Sequence[Kill]) -> dict[str, str]:
    row = {"phase": name, "kills": str(len(kills))}
    for key, title in (
        ("ended", "all ended"),
        ("whole", "checkpoints whole"),
        ("resumed", "resumed"),
        ("identical", "identical"),
    ):
        row[title] = str(sum(getattr(kill, key) for kill in kills))
    return row


if __name__ == "__main__":
    options: dict[str, dict[str, Any]] = {
        "--kills": {"type": int, "default": 50, "help": "how many [%(default)s]"},
        "--processes": {"type": int, "choices": (1, 2), "default": 1, "help": "[%(default)s]"},
        "--torchrun": {"action": "store_true", "help": "starts them, as launch.sh does"},
        "--seed": {"type": int, "default": 0, "help": "of moments and victims [%(default)s]"},
    }
    sys.exit(command(run, "Runs that were killed and resumed", options))
