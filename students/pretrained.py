"""Weights into a module, all of them or an error; a student of our own class as a folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from instil.base.checkpoint import compare, read_tensors, write_tensors
from instil.base.errors import InstilError
from instil.base.files import write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # huggingface_hub's names
SLACK = 1 << 20  # numbers; what `ignore` leaves out of a file may be missing there

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Match:
    """The names of a file's tensors beside those a module expects.

    Attributes:
        matched: In both, of one shape and dtype.
        differing: In both, of another shape or dtype.
        missing: Expected only.
        unexpected: In the file only.
    """

    matched: tuple[str, ...]
    differing: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def match(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Match:
    """Sort the names of two sets of tensors."""
    both = [name for name in expected if name in found]
    same = {
        name
        for name in both
        if found[name].shape == expected[name].shape and found[name].dtype == expected[name].dtype
    }
    return Match(
        matched=tuple(name for name in both if name in same),
        differing=tuple(name for name in both if name not in same),
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
    )


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module of exactly these parameters and buffers.

    Raises:
        InstilError: A name, shape or dtype differs, or a value is not finite; nothing was copied.
    """
    compare(source, tensors, module.state_dict())
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InstilError(
            f"{source}: values that are not finite in {', '.join(broken[:5])}{more}; "
            "take an earlier checkpoint"
        )
    module.load_state_dict(dict(tensors))


def build(make: Callable[[], M], tensors: Mapping[str, Tensor], source: str) -> M:
    """A network that a file describes, with weights of its own.

    It is built without memory first, since the file may not hold the numbers that it speaks of.

    Args:
        make: Builds it.
        tensors: What the file does hold.
        source: For the message.

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


class Pretrained(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for students of our own classes.

    The arguments of the constructor go into `config.json` with the class's name, the weights into
    `model.safetensors`. Where huggingface_hub would skip tensors that do not fit, this refuses
    them.
    """

    def core(self) -> nn.Module:
        """The module whose tensors are saved, by its own names."""
        assert isinstance(self, nn.Module)  # noqa: S101, of every subclass
        return self

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` calls."""
        write_tensors(save_directory / WEIGHTS, self.core().state_dict())
        arguments: Any = self._hub_mixin_config
        config = {"student": type(self).__name__} | arguments
        write_text(save_directory / CONFIG, json.dumps(config, indent=2) + "\n")

    @classmethod
    def _described(
        cls, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
    ) -> Any:
        """A student with weights of its own, from the contents of `config.json`."""
        make: Any = partial(cls, **arguments)
        try:
            signature(cls).bind(**arguments)
        except TypeError as error:
            raise InstilError(
                f"{source}: config.json does not describe a {cls.__name__} ({error})"
            ) from None
        return build(make, tensors, str(Path(source) / CONFIG))

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", **arguments: Any
    ) -> Self:
        """What `from_pretrained` calls, with the contents of `config.json` among the arguments.

        Raises:
            InstilError: The configuration is incomplete, or the weights are not this student's.
        """
        where = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        hub = {name: arguments.pop(name) for name in where}
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = Path(hf_hub_download(model_id, WEIGHTS, **hub))
        tensors = read_tensors(path)
        student = cls._described(arguments, tensors, model_id)
        load_weights(student.core(), tensors, str(path))
        return student.to(map_location).eval()
