"""Distillations as processes that can be killed: forked from a warm parent, or launched."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import psutil
import torch

from distill.__main__ import RECIPES, main
from distill.recipe import Recipe
from eval.quality.evaluator import Evaluator
from instil.base.config import load_recipe
from instructors.load import load

SHARED = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


class Processes(Protocol):
    """A distillation under way."""

    def kill(self, random: Random) -> str | None:
        """SIGKILL one of its processes at random; says which, None if all have ended."""
        ...

    def wait(self, seconds: float) -> int | None:
        """The exit code, that of a failure if there is one, when all of it has ended; else None."""
        ...


def warm(words: Sequence[str]) -> None:
    """Import all that a run imports, so that forked runs need not: imports take most of the time.

    Nothing is trained here and there is one thread, since threads do not survive a fork.
    """
    import distill.distillation  # noqa: F401, seconds to import

    torch.set_num_threads(1)
    recipe = load_recipe(Recipe, words[0], list(words[1:]), RECIPES)
    Evaluator(recipe.evaluation, load(recipe.instructor), torch.device("cpu"))


class Forked:
    """Processes forked from this one; nobody but themselves tells them of each other's death.

    Args:
        words: Of the command line.
        log: Where their output goes.
        count: Of processes.
    """

    def __init__(self, words: Sequence[str], log: Path, count: int) -> None:
        log.write_text("")
        context = multiprocessing.get_context("fork")
        shared = SHARED | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._ranks = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment = shared | own if count > 1 else {}
            process = context.Process(target=_carry_out, args=(words, log, environment))
            process.start()
            self._ranks.append(process)

    def kill(self, random: Random) -> str | None:
        alive = [rank for rank, process in enumerate(self._ranks) if process.is_alive()]
        if not alive:
            return None
        rank = random.choice(alive)
        self._ranks[rank].kill()
        return f"rank {rank}"

    def wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        for process in self._ranks:
            process.join(max(0, until - time.monotonic()))
        codes = [process.exitcode for process in self._ranks]
        return None if None in codes else next(filter(None, codes), 0)


class Launched:
    """Processes on the CPU under torchrun, as `launch.sh` starts them.

    Args:
        words: Of the command line.
        log: Where their output goes.
        count: Of processes.
    """

    def __init__(self, words: Sequence[str], log: Path, count: int) -> None:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        with log.open("w") as output:
            self._parent = subprocess.Popen(
                [sys.executable, *command, "-m", "distill", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | SHARED,
            )
        self._ranks: list[psutil.Process] = []

    def kill(self, random: Random) -> str | None:
        self._ranks = psutil.Process(self._parent.pid).children()
        if not self._ranks:
            return None
        victim = random.choice(self._ranks)
        rank = victim.environ()["RANK"]
        victim.kill()
        return f"rank {rank}"

    def wait(self, seconds: float) -> int | None:
        try:
            code = self._parent.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return None if psutil.wait_procs(self._ranks, timeout=1)[1] else code


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _carry_out(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """What a forked process does."""
    os.setsid()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        code = main(list(words))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
