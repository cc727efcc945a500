"""Weight files of strangers: every set of named tensors in them, and nothing is run."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.base.checkpoint import read_tensors
from instil.base.errors import InstilError
from instructors.nvidia import pickles

DEEPEST, MOST_VALUES = 8, 100_000  # mappings within mappings; values looked at
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before torch 1.6


def read_sets(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors of a weight file, by the keys that lead to them and by name.

    A file of `torch.save` may hold other things beside its tensors: settings, or whole modules,
    whose tensors are taken. They are read as data, by the allow-list of `pickles`.

    Returns:
        The tensors, and the names of the classes of what was left aside.

    Raises:
        InstilError: There is no file, it is of no known kind, or not whole.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise InstilError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return {"": read_tensors(path)}, []
    foreign: set[str] = set()
    if start.startswith(b"PK") or start == MAGIC:
        content = _read_torch(path, foreign)
    elif start.startswith(b"\x80"):
        content = pickles.read(path)
    else:
        raise InstilError(
            f"{path}: neither a .safetensors file nor one of torch.save; save the network's "
            "state_dict()"
        )
    left = [MOST_VALUES]
    sets = {place: tensors for place, tensors in _sets(content, "", 0, left) if tensors}
    return sets, sorted(foreign)


def _sets(value: Any, place: str, depth: int, left: list[int]) -> Iterator[tuple[str, Any]]:
    """Walk through nested mappings and modules."""
    if isinstance(value, pickles.Node):
        if "_modules" in value.state:
            yield place, pickles.state_dict(value)
            return
        value = value.state
    if not isinstance(value, Mapping) or depth > DEEPEST:
        return
    left[0] -= len(value)
    if left[0] < 0:
        raise InstilError(f"{place}: more than {MOST_VALUES:,} values; save the state_dict() alone")
    named = {key: each for key, each in value.items() if isinstance(key, str)}
    yield place, {key: each.detach() for key, each in named.items() if isinstance(each, Tensor)}
    for key, each in named.items():
        yield from _sets(each, f"{place}.{key}".lstrip("."), depth + 1, left)


def _read_torch(path: Path, foreign: set[str]) -> Any:
    """By torch's own loader of plain tensors, else by ours."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InstilError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # torch raises half a dozen kinds for what is not plain tensors
        return pickles.read_torch(path, foreign)
