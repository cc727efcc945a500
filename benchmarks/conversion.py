"""Seconds and memory of converting a pickle as large as EDM's CIFAR-10 checkpoints.

    python -m benchmarks.conversion [--rounds 3] [--json PATH]

The pickle is made here, of random weights under the names of those checkpoints, since theirs may
not be redistributed.
"""

import argparse
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.harness import Rows, command
from instructors.nvidia.song_unet import SongUNet

# Runs the command and prints the peak memory of its process, in KiB.
CONVERT = """\
import resource, sys
from instructors.__main__ import main
assert main(["convert", sys.argv[1], "--out", sys.argv[2]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
ARGUMENTS: dict[str, Any] = {"model_channels": 128, "channel_mult": [2, 2, 2], "dropout": 0.13}


def _reconstruct_persistent_obj(meta: Any) -> Any:
    """Stands for the function of EDM's code that runs a file's source text."""
    raise RuntimeError("nothing here loads this pickle")


class _Persistent:
    """Pickles as EDM's persistent classes do."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "module_src": "", "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,)


def _persistent(module: nn.Module, class_name: str = "Module", **state: Any) -> _Persistent:
    children = {name: _persistent(child) for name, child in module.named_children()}
    tensors = {"_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    return _Persistent(class_name, {**tensors, "_modules": children, **state})


def write(path: Path) -> int:
    """Write the pickle; returns its number of parameters."""
    fake = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = fake.__name__
    fake.__dict__[_reconstruct_persistent_obj.__name__] = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), fake.__name__: fake}
    network = SongUNet(32, 3, 3, augment_labels=9, **ARGUMENTS)
    given = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "augment_dim": 9}
    recorded = {"_init_args": (), "_init_kwargs": given | ARGUMENTS}
    outer = nn.Module()
    outer.model = network
    path.write_bytes(pickle.dumps({"ema": _persistent(outer, "EDMPrecond", **recorded)}, 4))
    return sum(p.numel() for p in network.parameters())


def measure(options: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Convert it in a process of its own, several times."""
    seconds, peak = [], 0
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "network.pkl", Path(folder) / "out"
        # In a process of its own, since a child's peak counts what its parent held.
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            parameters = other.submit(write, file).result()
        for _ in range(options.rounds):
            shutil.rmtree(out, ignore_errors=True)
            began = time.perf_counter()
            done = subprocess.run(  # noqa: S603, our own words
                [sys.executable, "-c", CONVERT, str(file), str(out)],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds.append(time.perf_counter() - began)
            peak = max(peak, 1024 * int(done.stdout.split()[-1]))
        size = file.stat().st_size
    median = statistics.median(seconds)
    row = {
        "parameters": f"{parameters:,}",
        "file": f"{size / 2**20:.0f} MiB",
        "seconds, imports and all": f"{median:.1f}",
        "peak memory": f"{peak / 2**20:,.0f} MiB",
    }
    return [row], {"parameters": parameters, "each": seconds, "peak_memory_bytes": peak}


OPTIONS = {"--rounds": {"type": int, "default": 3, "metavar": "N", "help": "conversions"}}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return command(measure, "Conversion of an EDM checkpoint", OPTIONS, argv)


if __name__ == "__main__":
    sys.exit(main())
