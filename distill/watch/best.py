"""The best student of a run so far, kept on disk, and when to stop waiting for a better one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from instil.base.checkpoint import read_tensors, write_tensors
from instil.base.processes import on_main


class Best:
    """Follows the quick distances of a run; the start is a candidate like any other.

    Args:
        folder: The folder of the weights; made when there are some.
        records: Lines of `metrics.jsonl` from before a resume.
    """

    def __init__(self, folder: Path, records: Sequence[Mapping[str, Any]] = ()) -> None:
        self.folder = folder
        self.step, self.name, self.distance, self.stale = 0, "", float("inf"), 0
        for record in records:
            if "fd" in record:
                self._compare(record["step"], record["fd"], must_exist=True)

    def offer(
        self, step: int, distances: Mapping[str, float], modules: Mapping[str, nn.Module]
    ) -> None:
        """Compare a measurement with the best so far; keep the weights if it is better.

        Args:
            step: Updates done.
            distances: Quick distances by the name of the average.
            modules: The averages by name.
        """
        before = self.path
        if self._compare(step, distances):
            on_main(lambda: self._write(before, modules[self.name]))

    @property
    def path(self) -> Path:
        """The file of the best weights."""
        return self._path(self.step, self.name)

    def restore(self, module: nn.Module) -> None:
        """Put the weights into a module."""
        module.load_state_dict(read_tensors(self.path))

    def _write(self, before: Path, module: nn.Module) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, module.state_dict())
        if before != self.path:
            before.unlink(missing_ok=True)

    def _path(self, step: int, name: str) -> Path:
        return self.folder / f"step-{step:08d}-{name}.safetensors"

    def _compare(self, step: int, distances: Mapping[str, float], must_exist: bool = False) -> bool:
        name = min(distances, key=lambda each: distances[each])
        better = distances[name] < self.distance
        if better and (not must_exist or self._path(step, name).exists()):
            self.step, self.name, self.distance, self.stale = step, name, distances[name], 0
            return True
        self.stale += 1
        return False
