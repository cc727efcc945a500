"""Checkpoints: safetensors in a folder that appears whole or not at all.

A checkpoint is `step-00001234/` with one `.safetensors` per module and per optimizer and a
`checkpoint.json`. It is written beside its place and renamed, so a run that is killed at any moment
leaves the last one intact. Nothing is ever pickled.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from instil.base import untrusted
from instil.base.errors import InstilError
from instil.base.files import appearing, reason, remove, replacing, sync, write_text

META = "checkpoint.json"
# State of each parameter: in torch's Adam, and in the Adam with 8 bits.
MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "state1", "state2"})
BLOCKWISE = ("absmax", "qmap")  # scales of 8-bit moments, which have no parameter's shape


def save(
    root: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    meta: Mapping[str, Any],
    keep: int | None = None,
) -> Path:
    """Write `root/step-…` atomically, then drop all but the newest `keep`.

    Args:
        root: Folder of the run's checkpoints.
        step: Updates done so far.
        modules: Trained and averaged modules, by name.
        optimizers: Optimizers, by name.
        meta: JSON values to write into `checkpoint.json`, beside the step.
        keep: Number of checkpoints to keep; None keeps all.

    Raises:
        OSError: The folder cannot be written; earlier checkpoints are untouched.
    """
    folder = root / f"step-{step:08d}"
    for rest in root.glob(".step-*.partial"):  # of a run that was killed
        shutil.rmtree(rest, ignore_errors=True)
    try:
        with appearing(folder) as partial:
            for name, module in modules.items():
                write_tensors(partial / f"{name}.safetensors", module.state_dict())
            for name, optimizer in optimizers.items():
                write_tensors(partial / f"{name}.safetensors", _flatten(optimizer))
            write_text(partial / META, json.dumps({"step": step, **meta}, indent=2))
        sync(root)
    except OSError as error:
        raise OSError(f"{folder}: checkpoint could not be written ({reason(error)})") from error
    for old in find(root)[: -keep if keep else 0]:
        remove(old)
    return folder


def find(root: Path) -> list[Path]:
    """The complete checkpoints below `root`, oldest first."""
    return sorted(path.parent for path in root.glob(f"step-*/{META}"))


def read_meta(folder: Path) -> dict[str, Any]:
    """The contents of `checkpoint.json`.

    Raises:
        InstilError: The folder is no complete checkpoint.
    """
    path = folder / META
    if not untrusted.is_file(path):
        raise InstilError(f"{folder}: no checkpoint there ({META} is missing)")
    content = untrusted.read_json(path)
    step, recipe = content.get("step"), content.get("recipe", {})
    if type(step) is not int or step < 0 or not isinstance(recipe, dict):
        raise InstilError(
            f"{path}: was changed: expected the number of updates as step and a mapping as recipe, "
            f"got {step!r} and a {type(recipe).__name__}; take another checkpoint"
        )
    return content


def restore(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> None:
    """Load a checkpoint into modules and optimizers of the same names.

    Raises:
        InstilError: A file is missing or corrupted, or holds other tensors than expected; the
            message names the tensors. All files are read before anything is changed.
    """
    weights, states = {}, {}
    for name, module in modules.items():
        weights[name] = read_tensors(folder / f"{name}.safetensors")
        compare(str(folder / f"{name}.safetensors"), weights[name], module.state_dict())
    for name, optimizer in optimizers.items():
        states[name] = _read_optimizer(folder / f"{name}.safetensors", optimizer)
    for name, module in modules.items():
        module.load_state_dict(weights[name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InstilError: It is missing or not a whole safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InstilError(f"{path}: missing") from None
    except (SafetensorError, OSError) as error:
        raise InstilError(f"{path}: not a whole safetensors file ({error})") from None


def digest(module: nn.Module, digits: int = 8) -> str:
    """Hexadecimal digits of a hash that changes with any parameter or buffer of a module."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:digits]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file and force it to disk; shared memory is written twice."""
    seen: set[int] = set()
    copies = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        shared = copy.numel() > 0 and copy.data_ptr() in seen
        copies[name] = copy.clone() if shared else copy
        seen.add(copy.data_ptr())
    with replacing(path) as partial:
        save_file(copies, partial, metadata={"format": "pt", **(metadata or {})})


def match(held: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Sort the names of a file's tensors and of those a module expects.

    Returns:
        `matched` of one shape and dtype, `differing` in one of them, `missing` in the file, and
        `unexpected` by the module.
    """
    same = {
        name: (held[name].shape, held[name].dtype) == (tensor.shape, tensor.dtype)
        for name, tensor in expected.items()
        if name in held
    }
    return {
        "matched": [name for name, equal in same.items() if equal],
        "differing": [name for name, equal in same.items() if not equal],
        "missing": [name for name in expected if name not in held],
        "unexpected": [name for name in held if name not in expected],
    }


def compare(source: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Raises:
        InstilError: Names, shapes or dtypes differ; the message lists the first few.
    """
    names = match(found, expected)
    faults = [f"{kind} {name}" for kind in ("missing", "unexpected") for name in names[kind]]
    for name in names["differing"]:
        got, want = (f"{held[name].dtype} {tuple(held[name].shape)}" for held in (found, expected))
        faults.append(f"{name} is {got}, expected {want}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InstilError(f"{source}: holds other weights: {'; '.join(faults[:5])}{more}")


def _flatten(optimizer: Optimizer) -> dict[str, Tensor]:
    """Optimizer state as `{parameter number}.{name}`; hyper-parameters live in the recipe."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def _read_optimizer(path: Path, optimizer: Optimizer) -> dict[str, Any]:
    """A state dictionary for `optimizer`, checked against its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in read_tensors(path).items():
        number, _, name = key.partition(".")
        known = number.isdecimal() and int(number) < len(parameters)
        shapes = [(), parameters[int(number)].shape] if known else []
        if not known or (tensor.shape not in shapes and not name.startswith(BLOCKWISE)):
            raise InstilError(
                f"{path}: {key} {tuple(tensor.shape)} belongs to no parameter of this optimizer"
            )
        count = tensor.ndim == 0 and not tensor.is_floating_point()  # of updates, no tensor before
        state.setdefault(int(number), {})[name] = tensor.item() if count else tensor
    for number, parts in state.items():
        if not any(whole <= parts.keys() for whole in MOMENTS):
            raise InstilError(
                f"{path}: {number} holds {', '.join(parts)}; not a whole state of Adam"
            )
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
