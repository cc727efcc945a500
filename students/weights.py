"""Tensors of a file that belong to a module: found among others, compared, loaded whole."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from typing import NamedTuple

from torch import Tensor, nn

from instil.base.checkpoint import compare
from instil.base.errors import InstilError, first_of

# What DataParallel and torch.compile put into the names of the modules they wrap.
WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(module|_orig_mod)\.")
COUNTER = "num_batches_tracked"  # of batch normalisation; files before torch 0.4.1 have none


def match(held: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Sort the names of a file's tensors and of those a module expects.

    Returns:
        `matched` of one shape and dtype, `differing` in one of them, `missing` in the file, and
        `unexpected` by the module.
    """
    same = {
        name: (held[name].shape, held[name].dtype) == (tensor.shape, tensor.dtype)
        for name, tensor in expected.items()
        if name in held
    }
    return {
        "matched": [name for name, equal in same.items() if equal],
        "differing": [name for name, equal in same.items() if not equal],
        "missing": [name for name in expected if name not in held],
        "unexpected": [name for name in held if name not in expected],
    }


class Reading(NamedTuple):
    """One way to read a module's tensors from a file.

    Attributes:
        place: Keys that lead to the tensors, then the prefix of their names, with dots; may be "".
        tensors: The tensors there, by name without the prefix.
        beside: Names at the same keys that do not have the prefix.
    """

    place: str
    tensors: dict[str, Tensor]
    beside: tuple[str, ...]

    def fits(self, expected: Mapping[str, Tensor], optional: Collection[str]) -> bool:
        """Whether every expected tensor is there, in its shape."""
        return all(
            name in optional or (name in self.tensors and self.tensors[name].shape == value.shape)
            for name, value in expected.items()
        )


def find_weights(
    sets: Mapping[str, Mapping[str, Tensor]],
    module: nn.Module,
    source: str,
    key: str | None = None,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
) -> tuple[Reading, dict[str, Tensor]]:
    """Find a module's tensors among those of a file.

    Args:
        sets: The file's tensors by name, by the keys that lead to them.
        module: The module.
        source: The file, for messages.
        key: Place of the tensors; may be a part of it. None takes the only place that fits.
        ignore: Names to leave out, `*` allowed: the module keeps its own tensors.
        optional: Names of the module that a file may lack.

    Returns:
        The place, and the tensors to load: in the module's number types, without ignored ones. If
        nothing fits, those of the place that comes nearest.

    Raises:
        InstilError: The file holds no tensors or none under the key, several places fit, or
            nothing has an ignored name.
    """
    own = module.state_dict()
    _check_patterns(ignore, [*own, *(name for held in sets.values() for name in held)])
    kept = {k: {n: t for n, t in held.items() if not _any(n, ignore)} for k, held in sets.items()}
    free = {name for name in own if name.endswith(COUNTER) or _any(name, ignore)} | {*optional}
    readings = [*_readings(kept, own)] or [*_readings(_unwrapped(kept), own)]
    readings = readings or [Reading(place, dict(held), ()) for place, held in kept.items()]
    if not readings:
        raise InstilError(f"{source}: holds no tensors by name")
    if key is not None:
        chosen = [each for each in readings if each.place == key]
        chosen = chosen or [each for each in readings if f".{key}." in f".{each.place}."]
        if not chosen:
            places = ", ".join(each.place or "tensors by name" for each in readings)
            raise InstilError(f"{source}: holds no {key}, but {places}")
        readings = chosen
    fitting = [each for each in readings if each.fits(own, free)]
    if len(fitting) > 1:
        places = ", ".join(f"key={each.place}" for each in fitting if each.place)
        raise InstilError(f"{source}: several networks fit ({places}); set key, or ignore the rest")
    best = max(fitting or readings, key=lambda each: len(match(each.tensors, own)["matched"]))
    tensors = {n: t for n, t in own.items() if n not in best.tensors and n in free}
    for name, value in best.tensors.items():
        if _any(name, ignore):
            tensors |= {name: own[name]} if name in own else {}
            continue
        floats = name in own and value.is_floating_point() and own[name].is_floating_point()
        tensors[name] = value.to(own[name].dtype) if floats else value
    return best, tensors


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module of exactly these parameters and buffers.

    Raises:
        InstilError: A name, shape or dtype differs, or a value is not finite; nothing was copied.
    """
    compare(source, tensors, module.state_dict())
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InstilError(
            f"{source}: values that are not finite in {first_of(broken)}; take an earlier "
            "checkpoint"
        )
    module.load_state_dict(dict(tensors))


def _readings(
    sets: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor]
) -> Iterator[Reading]:
    """One reading per set and prefix under which most of the expected names are found."""
    for place, held in sets.items():
        prefixes: Counter[str] = Counter()
        for name in held:
            starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
            prefixes.update(name[:start] for start in starts if name[start:] in expected)
        for prefix, count in prefixes.items():
            if 2 * count > len(expected):
                inside = {n[len(prefix) :]: t for n, t in held.items() if n.startswith(prefix)}
                beside = tuple(name for name in held if not name.startswith(prefix))
                whole = ".".join(filter(None, (place, prefix.rstrip("."))))
                yield Reading(whole, inside, beside)


def _unwrapped(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {k: {WRAPPERS.sub("", n): t for n, t in held.items()} for k, held in sets.items()}


def _any(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _check_patterns(patterns: Collection[str], names: Collection[str]) -> None:
    for pattern in patterns:
        if not any(_any(name, (pattern, f"*.{pattern}")) for name in names):
            raise InstilError(f"ignore: no tensor is called {pattern}, in the file or the network")
