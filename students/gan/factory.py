"""A network made by the user's own code."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from instil.base.config import own
from instil.base.errors import InstilError
from students.gan.randomness import OnDevice


def make(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import and call a factory; the network is on the CPU.

    Args:
        factory: `package.module:callable`, `package.module.Class` or `path/to/file.py:callable`.
        arguments: Its keyword arguments.

    Raises:
        InstilError: It cannot be imported or called, or what it makes is no module with parameters.
    """
    try:
        build = own.load(factory if ":" in factory else ":".join(factory.rsplit(".", 1)))
    except InstilError as error:
        raise InstilError(f"factory: {error}") from error
    given = f"does not take {dict(arguments)}" if arguments else "fails"
    with own.running(f"factory: {factory} {given}"), OnDevice(torch.device("cpu")):
        network = build(**arguments)
    if isinstance(network, nn.DataParallel):
        network = network.module
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
