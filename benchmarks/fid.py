"""Seconds and peak memory of `python -m eval fid` against torch-fidelity's own command.

    python -m benchmarks.fid [--images 2000] [--side 64] [--json PATH]

Both measure the same images, one after the other, each in a process of its own, with the same
random Inception weights, so nothing is downloaded. Theirs computes FID alone; ours adds its error,
the bias-free value, KID, precision, recall, density, coverage, inception score and copies.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch_fidelity.feature_extractor_inceptionv3 as theirs
from PIL import Image

from benchmarks.harness import Rows, command


def random_inception(path: Path) -> None:
    """Write random weights of torch-fidelity's Inception, scaled so that features vary."""
    network = theirs.FeatureExtractorInceptionV3
    with (
        patch.object(theirs, "load_state_dict_from_url"),
        patch.object(network, "load_state_dict"),
    ):
        state = network("inception-v3-compat", ["2048"]).state_dict()
    draw = torch.Generator().manual_seed(0)
    for weight in (each for each in state.values() if each.dim() > 1):
        size = weight[0].numel()
        scale = (2 / size) ** 0.5 if weight.dim() == 4 else size**-0.5
        weight.copy_(torch.randn(weight.shape, generator=draw) * scale)
    torch.save(state, path)


def write_images(folder: Path, count: int, side: int, seed: int) -> None:
    """Write PNG files of coloured squares with noise."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(count):
        squares = np.kron(draw.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1)))
        image = squares + draw.integers(-20, 21, squares.shape) + 10 * seed
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def run_alone(words: list[str], cache: Path) -> tuple[str, dict[str, float]]:
    """Run a command; returns what it printed, and its seconds, processor seconds and peak bytes."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = os.posix_spawn(
            words[0],
            words,
            os.environ | {"INSTIL_CACHE": str(cache)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, said.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
            ],
        )
        _, status, used = os.wait4(process, 0)
        said.seek(0)
        text = said.read()
    if status:
        raise RuntimeError(text)
    facts = {"seconds": time.perf_counter() - began, "peak_bytes": 1024.0 * used.ru_maxrss}
    return text, facts | {"processor_seconds": used.ru_utime + used.ru_stime}


def measure(options: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Run both commands on fresh images."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first, second, weights = root / "first", root / "second", root / "inception.pth"
        random_inception(weights)
        for seed, images in enumerate((first, second)):
            write_images(images, options.images, options.side, seed)
        python = [sys.executable, "-m"]
        one = [*python, "eval", "fid", "--images", str(first), "--reference", str(second)]
        two = [*python, "torch_fidelity.fidelity", "--cpu", "--fid"]
        two += ["--input1", str(first), "--input2", str(second)]
        said, ours = run_alone([*one, "--weights", str(weights)], root)
        option = "--feature-extractor-weights-path"
        said_too, other = run_alone([*two, option, str(weights)], root)
    found = [re.search(r"FID +│ +([\d.]+)", said), re.search(r"Distance: ([\d.]+)", said_too)]
    values = [float(each[1]) if each else float("nan") for each in found]
    rows = [
        {
            "command": name,
            "FID": f"{value:.4f}",
            "seconds": f"{facts['seconds']:.0f}",
            "processor seconds": f"{facts['processor_seconds']:.0f}",
            "peak memory": f"{facts['peak_bytes'] / 2**30:.2f} GiB",
        }
        for name, value, facts in zip(
            ("eval fid", "fidelity --fid"), values, (ours, other), strict=True
        )
    ]
    ratios = {key: ours[key] / other[key] for key in ours}
    return rows, {"images": options.images, "ours": ours, "theirs": other, "ratios": ratios}


OPTIONS: dict[str, dict[str, Any]] = {
    "--images": {"type": int, "default": 2000, "help": "images on either side [%(default)s]"},
    "--side": {"type": int, "default": 64, "help": "pixels, a multiple of 8 [%(default)s]"},
}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    return command(measure, "eval fid against torch-fidelity's own command", OPTIONS, argv)


if __name__ == "__main__":
    sys.exit(main())
