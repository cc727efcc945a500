"""Fixtures. Helpers live here only: torch-fidelity installs a top-level package `tests`."""

import os
import subprocess
import sys
import types
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
def persistent(monkeypatch):
    """Make an object that pickles as NVIDIA's persistent classes do.

    Called with a class name, tensors by dotted name, recorded arguments, further attributes and the
    source text that their own loader would run.
    """

    def reconstruct(meta):
        exec(meta["module_src"], {})
        return meta

    module = types.ModuleType("torch_utils.persistence")
    reconstruct.__module__ = module.__name__
    reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = reconstruct
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent:
        def __init__(self, class_name, state, source):
            self.meta = {
                "type": "class",
                "version": 6,
                "module_src": source,
                "class_name": class_name,
                "state": state,
            }

        def __reduce__(self):
            return reconstruct, (self.meta,)

    def make(class_name, tensors=None, arguments=None, source="", **attributes):
        own = torch.nn.Module()  # for the attributes a torch module has
        children = {}
        for name, tensor in (tensors or {}).items():
            first, _, rest = name.partition(".")
            if not rest:
                own._parameters[first] = torch.nn.Parameter(tensor, requires_grad=False)
            else:
                children.setdefault(first, {})[rest] = tensor
        modules = {name: make("Module", inside, {}) for name, inside in children.items()}
        recorded = {"_init_args": (), "_init_kwargs": arguments or {}}
        state = own.__dict__ | {"_modules": modules} | recorded | attributes
        return Persistent(class_name, state, source)

    return make


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
