"""Weights into a module, all of them or an error; a student of our own class as a folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from instil.checkpoint import compare, read_tensors, write_tensors, write_text
from instil.errors import InstilError

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # huggingface_hub's names


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


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Match:
    """Copy tensors into a module of exactly these parameters and buffers.

    Raises:
        InstilError: A name, shape or dtype differs, or a value is not finite; nothing was copied.
    """
    expected = module.state_dict()
    compare(source, tensors, expected)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise InstilError(
            f"{source}: values that are not finite in {', '.join(broken[:5])}{more}; "
            "take an earlier checkpoint"
        )
    module.load_state_dict(dict(tensors))
    return match(tensors, expected)


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
        try:
            student: Any = cls(**arguments)
        except TypeError as error:
            raise InstilError(
                f"{model_id}: config.json does not describe a {cls.__name__} ({error})"
            ) from None
        load_weights(student.core(), read_tensors(path), str(path))
        return student.to(map_location).eval()
