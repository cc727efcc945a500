"""Distillations as processes that can be killed: forked from a warm parent, or launched."""

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import psutil
import torch

from distill.__main__ import RECIPES, main
from distill.recipe import Recipe
from eval.yardstick import Yardstick
from instil.config import load_recipe
from instructors.load import load


class Process(Protocol):
    """A distillation under way."""

    def kill(self, random: Random) -> str:
        """SIGKILL what runs, one rank at random where there are several; says which."""
        ...

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal, when all of it has ended; None if it has not."""
        ...


def warm(words: Sequence[str]) -> None:
    """Import all that a run imports, so that forked runs need not: imports take most of the time.

    Nothing is trained here and there is one thread, since threads do not survive a fork.
    """
    import distill.session  # noqa: F401, seconds to import

    torch.set_num_threads(1)
    recipe = load_recipe(Recipe, words[0], list(words[1:]), RECIPES)
    Yardstick(recipe.evaluation, load(recipe.instructor), torch.device("cpu"))


class Forked:
    """One process, forked from this one.

    Args:
        words: Of the command line.
        log: Where its output goes.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_carry_out, args=(words, log))
        self._process.start()

    def kill(self, random: Random) -> str:
        del random
        self._process.kill()
        return "the process"

    def wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


class Launched:
    """Two processes on the CPU, launched as `launch.sh` does it.

    Args:
        words: Of the command line.
        log: Where its output goes.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        with log.open("w") as output:
            self._process = subprocess.Popen(  # noqa: S603, our own command
                [sys.executable, *command, "-m", "distill", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            )
        self._ranks: dict[str, psutil.Process] = {}

    def kill(self, random: Random) -> str:
        for child in psutil.Process(self._process.pid).children():
            if rank := child.environ().get("RANK"):
                self._ranks[rank] = child
        rank = random.choice(sorted(self._ranks))
        self._ranks[rank].kill()
        return f"rank {rank}"

    def wait(self, seconds: float) -> int | None:
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return None if psutil.wait_procs(list(self._ranks.values()), timeout=1)[1] else code


def _carry_out(words: Sequence[str], log: Path) -> None:
    """What a forked process does."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = main(list(words))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
