"""Weights of an earlier run as the start of a new one: another objective, a longer schedule."""

from pathlib import Path

from torch import nn

from instil.base import checkpoint
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir


def warm_start(module: nn.Module, source: str, name: str) -> None:
    """Load weights that an earlier run saved; every tensor must be there and fit.

    Args:
        module: Changed in place.
        source: A `.safetensors` file of a checkpoint, a checkpoint, or a run (its last checkpoint).
        name: The file inside a checkpoint, without its suffix: `student` or `fake`.

    Raises:
        InstilError: There is no such file, or it holds other weights.
    """
    path = Path(source)
    if is_dir(path):
        whole = (path / checkpoint.META).exists()
        checkpoints = [path] if whole else checkpoint.find(path / "checkpoints")
        if not checkpoints:
            raise InstilError(
                f"{name}.init: {source} holds no checkpoint; expected a run, a checkpoint "
                "or a .safetensors file of one"
            )
        path = checkpoints[-1] / f"{name}.safetensors"
    tensors = checkpoint.read_tensors(path)
    checkpoint.compare(f"{name}.init: {path}", tensors, module.state_dict())
    module.load_state_dict(tensors)
