"""Does a long run stay as it began? Memory, speed and checkpoints of an hour of digits training.

    python -m tests.checks.long_run [--minutes 60] [--processes 1] [--plot PNG]

The run is another process (or several, under torchrun) that saves every 100 updates, measures and
draws every 500, and is asked to end when the time is over. Looked at every few seconds: resident
memory of each process, its processor time, updates done, checkpoints on disk. Speed is counted in
updates per second of the processor, so that other work on the machine does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import Rows, command
from instil.base.runs.monitor import note
from tests.checks.traces import records

OPTIONS: dict[str, dict[str, Any]] = {
    "--minutes": {"type": float, "default": 60.0, "help": "[%(default)s]"},
    "--processes": {"type": int, "default": 1, "help": "[%(default)s]"},
    "--every": {"type": float, "default": 5.0, "help": "seconds between two looks [%(default)s]"},
    "--plot": {"type": Path, "metavar": "PNG"},
}
WORDS = (
    *("digits", "name=long", "train.steps=1000000000", "save_every=100", "keep=2"),
    *("evaluation.every=500", "pictures_every=500", "train.precision=no"),
)
PARTS = 10  # of the run; the second is compared with the last, since the first warms up


def looked_at(folder: Path, minutes: float, processes: int, every: float) -> list[dict[str, Any]]:
    """Start the run, look at it until the time is over, and end it.

    Raises:
        RuntimeError: It ended by itself, or there was too little time.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = [sys.executable, *(launch if processes > 1 else []), "-m", "distill", *WORDS]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})
    looks: list[dict[str, Any]] = []
    with (folder / "said.txt").open("w") as said:
        run = subprocess.Popen(
            [*start, f"output={folder}"], stdout=said, stderr=said, env=environment
        )
        began = time.time()
        while time.time() - began < 60 * minutes:
            time.sleep(every)
            if run.poll() is not None:
                raise RuntimeError((folder / "said.txt").read_text()[-2000:])
            looks.append({"seconds": time.time() - began, **_look(run.pid, processes, folder)})
        run.terminate()
        run.wait()
    found = [look for look in looks if look["step"] and len(look["resident"]) == processes]
    if len(found) < 10 * PARTS:
        raise RuntimeError(f"{len(found)} looks after the first updates; let it run for longer")
    return found


def _look(parent: int, processes: int, folder: Path) -> dict[str, Any]:
    """Resident bytes and processor seconds of each training process, update, checkpoints."""
    top = psutil.Process(parent)
    workers = [top] if processes == 1 else top.children()
    resident, used = [], []
    for worker in workers:
        times = worker.cpu_times()
        resident.append(worker.memory_info().rss)
        used.append(times.user + times.system)
    run = folder / "long"
    step = max((record["step"] for record in records(run)), default=0)
    saved = [*(run / "checkpoints").glob("step-*")] if run.exists() else []
    return {"resident": resident, "used": sum(used), "step": step, "checkpoints": len(saved)}


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Run, look, and compare the second tenth with the last."""
    with tempfile.TemporaryDirectory() as name:
        looks = looked_at(Path(name), arguments.minutes, arguments.processes, arguments.every)
    note(f"{looks[-1]['step']} updates in {looks[-1]['seconds'] / 60:.0f} minutes")
    edges = np.linspace(looks[0]["seconds"], looks[-1]["seconds"], PARTS + 1)
    seconds = np.array([look["seconds"] for look in looks])
    parts = [np.flatnonzero((seconds > a) & (seconds <= b)) for a, b in pairwise(edges)]
    resident = [_mean(looks, part, "resident") for part in parts]
    speeds = [_speed(looks, part) for part in parts]
    if arguments.plot:
        _plot(looks, arguments.plot)
    facts = {
        "minutes": arguments.minutes,
        "processes": arguments.processes,
        "updates": looks[-1]["step"],
        "resident_bytes": resident,
        "updates_per_processor_second": speeds,
        "memory_drift": resident[-1] / resident[1] - 1,
        "speed_drift": speeds[-1] / speeds[1] - 1,
        "most_checkpoints": max(look["checkpoints"] for look in looks),
    }
    row = {
        "minutes": f"{arguments.minutes:g}",
        "processes": str(arguments.processes),
        "updates": f"{facts['updates']:,}",
        "resident memory, 2nd tenth": f"{resident[1] / 2**20:.1f} MiB",
        "last tenth": f"{resident[-1] / 2**20:.1f} MiB ({facts['memory_drift']:+.2%})",
        "updates per processor second": f"{speeds[1]:.3f}, {speeds[-1]:.3f} "
        f"({facts['speed_drift']:+.2%})",
        "checkpoints at most": str(facts["most_checkpoints"]),
    }
    return [row], facts


def _mean(looks: Sequence[dict[str, Any]], part: np.ndarray, key: str) -> float:
    return float(np.mean([np.sum(looks[row][key]) for row in part]))


def _speed(looks: Sequence[dict[str, Any]], part: np.ndarray) -> float:
    """Updates per second of the processor, by least squares over the looks of a part."""
    used = [looks[row]["used"] for row in part]
    return float(np.polyfit(used, [looks[row]["step"] for row in part], 1)[0])


def _plot(looks: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    minutes = [look["seconds"] / 60 for look in looks]
    left.plot(minutes, [sum(look["resident"]) / 2**20 for look in looks])
    left.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    right.plot([look["used"] / 60 for look in looks], [look["step"] for look in looks])
    right.set(xlabel="processor minutes", ylabel="updates")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(command(run, "A long run", OPTIONS))
