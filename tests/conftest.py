"""Fixtures. Helpers live here only: torch-fidelity installs a top-level package `tests`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _global_state(monkeypatch, tmp_path):
    """One thread, a cache of its own, and no test may leave torch's global state changed."""
    torch.set_num_threads(1)
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    before = (torch.get_default_dtype(), torch.is_grad_enabled())
    yield
    assert before == (torch.get_default_dtype(), torch.is_grad_enabled())


@pytest.fixture
def unet():
    """A tiny random diffusers UNet, by channels, classes and output channels."""

    def build(channels=1, classes=None, out=None, size=8):
        return UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=out or channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            add_attention=False,
            num_class_embeds=classes,
        )

    return build


@pytest.fixture
def python():
    """Run python in a subprocess from the repository root; `processes` > 1 through torchrun."""

    def run(*arguments, processes=1, env=None, check=True, cwd=ROOT, timeout=300):
        command = [sys.executable, *map(str, arguments)]
        extra = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone"]
            command[4:4] = [f"--nproc_per_node={processes}"]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | extra | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def data_root():
    """The folder INSTIL_DATA names, or a skip."""
    root = os.environ.get("INSTIL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the data folder named by INSTIL_DATA")
    return Path(root)
