"""Distillation runs of the benchmarks: each is made once, kept, and shared between benchmarks."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distill.__main__ import RECIPES
from distill.build import build
from distill.recipe import Recipe
from instil.base import checkpoint
from instil.base.config import load_recipe
from instil.base.runs.accelerator import bf16_is_fast
from instil.base.runs.monitor import METRICS, note
from instructors.instructor import Instructor
from instructors.load import load
from students.student import Student

OPTIONS: dict[str, dict[str, Any]] = {
    "--runs": {
        "type": Path,
        "default": Path("runs/benchmarks"),
        "metavar": "DIR",
        "help": "finished runs are kept there and not repeated [%(default)s]",
    },
    "--jobs": {"type": int, "default": 2, "help": "runs at once, one core each [%(default)s]"},
    "--seeds": {"type": int, "default": 3, "help": "training seeds [%(default)s]"},
}
# Several averages of one run cost little, and the raw weights (half-life 0) belong beside them.
AVERAGES = (0, 2_000, 10_000, 50_000)
PRECISION = "bf16" if bf16_is_fast() else "no"
COMMON = (
    f"train.averages={list(AVERAGES)}",
    f"train.precision={PRECISION}",
    "save_every=2000",
    "keep=1",
)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @cached_property
    def report(self) -> dict[str, Any]:
        """Its final report."""
        return json.loads((self.folder / "report.json").read_text())

    @cached_property
    def checkpoint(self) -> Path:
        """Its last checkpoint."""
        return max((self.folder / "checkpoints").glob("step-*"))

    @cached_property
    def recipe(self) -> Recipe:
        """What it did."""
        return load_recipe(Recipe, str(self.folder / "recipe.yaml"), [], self.folder)

    @cached_property
    def instructor(self) -> Instructor:
        """What it learnt from."""
        return load(self.recipe.instructor)

    def student(self, average: str | int) -> Student:
        """One average of its last checkpoint, frozen."""
        student = build(self.recipe, self.instructor).student.requires_grad_(False)
        path = self.checkpoint / f"average-{average}.safetensors"
        student.load_state_dict(checkpoint.read_tensors(path))
        return student

    def curve(self, average: str) -> tuple[np.ndarray, np.ndarray]:
        """Updates and quick distances of one average, both (N,)."""
        lines = (self.folder / METRICS).read_text().splitlines()
        found = [record for line in lines if "fd" in (record := json.loads(line))]
        steps, distances = ([r["step"] for r in found], [r["fd"][average] for r in found])
        return np.array(steps), np.array(distances)


def distilled(jobs: Sequence[Sequence[str]], folder: Path, workers: int) -> list[Run]:
    """Carry out recipes in processes of one thread each, except those done before.

    Args:
        jobs: Each a recipe's name and `key=value` changes, as on the command line.
        folder: Holds a run per recipe, named by a hash of all that is in it.
        workers: Processes at once.

    Returns:
        The runs, in order.
    """
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: _carry_out(job, folder), jobs))


def _carry_out(job: Sequence[str], folder: Path) -> Run:
    recipe = load_recipe(Recipe, job[0], [*COMMON, *job[1:]], RECIPES)
    told = recipe.model_dump_json(exclude_unset=True)  # a new key with a default changes nothing
    name = hashlib.sha256(told.encode()).hexdigest()[:12]
    run = Run(folder / name)
    if (run.folder / "report.json").exists():
        return run
    started = (run.folder / "checkpoints").exists()
    words = [job[0], *COMMON, *job[1:], f"output={folder}", f"name={name}"]
    words += ["--resume", str(run.folder)] if started else []
    note(f"{name}: {' '.join(job)}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("a") as log:
        subprocess.run(  # noqa: S603, our own command
            [sys.executable, "-m", "distill", *words],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return run
