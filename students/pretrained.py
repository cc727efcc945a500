"""Students of our own classes as folders: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

import json
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from instil.base.checkpoint import read_tensors, write_tensors
from instil.base.errors import InstilError
from instil.base.files import write_text
from students.build import build
from students.weights import load_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # huggingface_hub's names


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
        """Write weights and configuration; `save_pretrained` calls it."""
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
        """Load from a folder or the hub; `from_pretrained` calls it.

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
