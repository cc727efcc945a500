"""A hub of models in a folder, in place of huggingface_hub's downloads."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")


class Hub:
    """Repositories below `root`; `served` lists the files that were downloaded, by path."""

    def __init__(self, root: Path, monkeypatch: Any) -> None:
        self.root, self.cache = root / "hub", root / "cache"
        self.served: list[str] = []
        self.revisions: list[str | None] = []
        monkeypatch.setattr("instructors.files.sources.snapshot_download", self.snapshot)

    def add(self, folder: Path, name: str) -> str:
        """Publish a folder as a repository; returns its id."""
        shutil.copytree(folder, self.root / name, dirs_exist_ok=True)
        return f"me/{name}"

    def snapshot(
        self,
        repository: str,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        revision: str | None = None,
    ) -> str:
        self.revisions.append(revision)
        source = self.root / repository.partition("/")[2]
        target = self.cache / source.name
        names = [path.relative_to(source).as_posix() for path in source.rglob("*.*")]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            if (source / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, target / name)
                self.served.append(name)
        return str(target)

    @property
    def weights(self) -> set[str]:
        """The files of weights that were downloaded."""
        return {name for name in self.served if name.endswith(WEIGHTS)}
