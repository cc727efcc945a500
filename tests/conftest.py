"""Fixtures of all tests."""

import functools
import gc
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler
from safetensors.torch import load_file

from tests.tools import pipelines

ROOT = Path(__file__).parents[1]


def pytest_collection_finish():
    """Spare what was imported from garbage collection, of which every run makes several."""
    gc.collect()
    gc.freeze()


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
    """A tiny random diffusers UNet, by channels, classes, output channels and widths."""

    return pipelines.unet


@pytest.fixture
def on_tiny(unet, tmp_path, monkeypatch):
    """The first words of a command line that distils a tiny instructor of three classes."""
    monkeypatch.setattr("distill.watch.monitors.PER_DECADE", 1)  # a third of a short run's time
    torch.manual_seed(0)
    pipeline = ConsistencyModelPipeline(unet(classes=3), EDMEulerScheduler())
    pipeline.save_pretrained(tmp_path / "instructor")
    return ["digits", f"instructor={tmp_path / 'instructor'}", f"output={tmp_path / 'runs'}"]


@pytest.fixture
def weights():
    """Every tensor of the newest checkpoint of a run, by file and name."""

    def read(run):
        folder = sorted((run / "checkpoints").glob("step-*"))[-1]
        return {
            f"{file.name}/{name}": tensor
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    return read


@pytest.fixture
def assert_same():
    """Compare tensors by name, to the bit."""

    def compare(one, two):
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), name

    return compare


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


@pytest.fixture(scope="session")
def python():
    """Run python in a subprocess from the repository root."""

    def run(*arguments, env=None, check=True, cwd=ROOT, timeout=300):
        command = [sys.executable, *map(str, arguments)]
        extra = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
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


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory):
    """The folder of a family's tiny pipeline, written once; tests only read it."""
    root = tmp_path_factory.mktemp("pipelines")

    @functools.cache
    def saved(family):
        pipelines.save(family, root / family.replace(" ", "-"))
        return root / family.replace(" ", "-")

    return saved


@pytest.fixture
def tiny_pipeline(saved_pipeline, tmp_path):
    """Copy a family's tiny random pipeline below `tmp_path`; returns its folder."""

    def copy(family):
        source = saved_pipeline(family)
        return shutil.copytree(source, tmp_path / source.name, dirs_exist_ok=True)

    return copy
