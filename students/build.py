"""A network that a file describes, of a size that the file's own tensors can fill."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from instil.base.errors import InstilError

SLACK = 1 << 20  # numbers that may be missing in the file

M = TypeVar("M", bound=nn.Module)


def build(make: Callable[[], M], tensors: Mapping[str, Tensor], source: str) -> M:
    """Build a network that a file describes, with initial weights.

    It is built without memory first, since the file may describe more numbers than it holds.

    Args:
        make: The constructor with its arguments.
        tensors: The tensors in the file.
        source: Name of the file, for messages.

    Raises:
        InstilError: It cannot be built, or is larger than the file's tensors can fill.
    """
    modules = 0

    def count(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > 4 * len(tensors) + 1000:
            raise InstilError(f"{source}: describes a network of far more layers than it holds")

    counting = register_module_module_registration_hook(count)
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        try:
            with torch.device("meta"):
                wanted = sum(tensor.numel() for tensor in make().state_dict().values())
        except RuntimeError as error:
            if "meta tensors" not in str(error):
                raise
            wanted = 0  # zuko's flows look at values while they are built
        if wanted > 2 * held + SLACK:
            raise InstilError(
                f"{source}: describes a network of {wanted:,} numbers and holds {held:,}; "
                "take the file it was made with"
            )
        return make()
    except InstilError:
        raise
    except Exception as error:  # arguments of another kind fail in a dozen ways
        reason = " ".join(str(error).split())[:200]
        raise InstilError(f"{source}: describes no network one can build ({reason})") from None
    finally:
        counting.remove()
