"""Counts the bytes that are alive while torch computes, by what they are for."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "working memory"  # storages without a name


class Alive(TorchDispatchMode):
    """Counts storages from the operation that returns them until they are freed.

    Tensors without values count like others. Memory that a kernel takes and gives back is not seen.

    Attributes:
        now: Bytes alive, by part.
        most: Bytes alive when their sum was largest, by part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._known: dict[int, tuple[str, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.name(REST, (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        if self.now.total() > self.most.total():
            self.most = self.now.copy()
        return result

    def name(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Name the part that tensors belong to; storages that have a name keep it."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self.now[REST] += size
                self._known[key] = REST, weakref.ref(storage, self._forget(key, size))
            before, reference = self._known[key]
            if before == REST:
                self.now[REST] -= size
                self.now[part] += size
                self._known[key] = part, reference

    def _forget(self, key: int, size: int) -> Any:
        def forget(_: Any) -> None:
            self.now[self._known.pop(key)[0]] -= size

        return forget
