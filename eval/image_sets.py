"""What is looked at before anything is measured on samples."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from instil.base.data import Images, floats
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.runs.monitor import note


def check_samples(samples: Tensor) -> None:
    """Refuse samples on which no loss means anything.

    Raises:
        InstilError: Fewer than two, not finite, or all equal.
    """
    if len(samples) < 2:
        raise InstilError(f"samples: expected at least 2, got {len(samples)}; add some")
    if samples.is_floating_point() and not samples.isfinite().all():
        raise InstilError("samples: hold values that are not finite; remove those samples")
    if (samples == samples[:1]).all():
        raise InstilError(f"samples: all {len(samples)} are equal, so there is nothing to learn")


def refuse_shared(first: Tensor, second: Tensor, one: str, other: str) -> None:
    """Refuse two sets that have samples in common: no conclusion would hold.

    Args:
        first: (N, *shape).
        second: (M, *shape).
        one: What the first are called in the message.
        other: What the second are called.

    Raises:
        InstilError: They share samples.
    """
    shared = len(set(_hashes(first)) & set(_hashes(second)))
    if shared:
        raise InstilError(
            f"{one} and {other} share {shared} samples, so no comparison would hold; "
            "take disjoint sets"
        )


def distinct(samples: Tensor) -> Tensor:
    """(K,) row numbers of the samples without repetitions, in order."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(_hashes(samples)):
        first.setdefault(key, row)
    return torch.tensor(list(first.values()))


def some(images: Images, most: int | None, seed: int) -> Images:
    """At most so many of the images, at random, each once."""
    rows = distinct(images.pixels)
    if len(rows) < len(images):
        note(f"{images.source}: {len(images) - len(rows)} repeated images left out")
    if most is not None and most < len(rows):
        order = Draws.of_range(seed, 0, 0, len(rows)).uniform("subset").argsort()
        rows = rows[order[:most].sort().values]
    return images.select(rows)


def compare_scales(first: Tensor, second: Tensor, one: str, other: str) -> None:
    """Warn where the spread of two image sets differs more than fourfold: one is scaled wrongly.

    Args:
        first: (N, *shape).
        second: (M, *shape).
        one: What the first are called in the note.
        other: What the second are called.
    """
    spreads = [floats(each).std().item() for each in (first, second)]
    if max(spreads) > 4 * min(spreads):
        note(
            f"{one} spread by {spreads[0]:.3g}, {other} by {spreads[1]:.3g}: more than a factor 4 "
            "apart; are both on one value range?"
        )


def digest(samples: Tensor) -> str:
    """Their number and eight hexadecimal digits that change with any value."""
    sha = hashlib.sha256()
    for part in samples.split(4096):
        sha.update(part.contiguous().cpu().numpy().tobytes())
    return f"{len(samples)} samples {sha.hexdigest()[:8]}"


def _hashes(samples: Tensor) -> Iterator[bytes]:
    for part in samples.split(4096):
        for row in floats(part).float().cpu().flatten(1).numpy():
            yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()
