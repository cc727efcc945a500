"""A network made by the user's own code, whose faults are told in one sentence."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from instil.base.errors import InstilError
from students.gan.randomness import OnDevice

# Beginnings of the names of files whose lines are not the user's.
FOREIGN = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    sysconfig.get_path("stdlib"),
    "<frozen",
)


@contextmanager
def users_code(before: str, after: str) -> Iterator[None]:
    """Turn whatever the block raises into one sentence with the last line of the user's code.

    Args:
        before: The sentence up to the reason.
        after: The rest of it.

    Raises:
        InstilError: The block raised anything but a Ctrl-C.
    """
    try:
        yield
    except (KeyboardInterrupt, torch.cuda.OutOfMemoryError):
        raise
    except BaseException as error:  # argparse raises SystemExit
        reason = (
            str(error) if isinstance(error, InstilError) else f"{type(error).__name__}: {error}"
        )
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if not f.filename.startswith(FOREIGN)]
        where = (
            f", in {Path(own[-1].filename).name} line {own[-1].lineno}: {own[-1].line}"
            if own
            else ""
        )
        reason = " ".join(reason.split())[:300] + where
        raise InstilError(f"{before}{reason}{after}") from error


def make(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import and call a factory; the network is on the CPU.

    Args:
        factory: `package.module:callable`, `package.module.Class` or `path/to/file.py:callable`.
        arguments: Its keyword arguments.

    Raises:
        InstilError: It cannot be imported or called, or what it makes is no module with parameters.
    """
    with users_code(
        f"factory: {factory} cannot be imported (",
        "); expected package.module:callable, installed or below the folder the command is run in, "
        "or path/to/file.py:callable",
    ):
        build = _import(factory)
    given = f" does not take {dict(arguments)}" if arguments else " cannot be called"
    with users_code(f"factory: {factory}{given} (", ")"), OnDevice(torch.device("cpu")):
        network = build(**arguments)
    if not isinstance(network, nn.Module) or not list(network.parameters()):
        raise InstilError(
            f"factory: {factory} makes a {type(network).__name__}, expected a torch module with "
            "parameters"
        )
    return network.cpu()


def save_all(network: nn.Module) -> list[str]:
    """Let a network save its non-persistent buffers too, since images may depend on them.

    Returns:
        Their names: a file of the network's own lacks them.
    """
    saved = network.state_dict().keys()
    for module in network.modules():
        module._non_persistent_buffers_set.clear()
    return [name for name in network.state_dict() if name not in saved]


def _import(factory: str) -> Any:
    """What a factory's name stands for."""
    where, name = factory.rsplit(":" if ":" in factory else ".", 1)
    path = Path(where)
    words = [sys.argv[0]]  # a script that reads its command line is not given ours
    with mock.patch.object(sys, "argv", words):
        if path.suffix != ".py":
            return getattr(importlib.import_module(where), name)
        spec: Any = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        sys.path.append(str(path.parent.resolve()))  # its neighbours
        spec.loader.exec_module(module)
        return getattr(module, name)
