"""Sharing work between the processes of one launch; with one process, just doing it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from instil.base.errors import InstilError

P = TypeVar("P")
R = TypeVar("R")


def place() -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_main() -> bool:
    """Whether this is the first process."""
    return place()[0] == 0


def on_main(make: Callable[[], R]) -> R:
    """Call `make` on the first process and give every process its result, or its error.

    Raises:
        InstilError: `make` raised an `InstilError` or `OSError` on the first process.
    """
    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = make()
        except (InstilError, OSError) as error:
            result[1] = str(error)
    if place()[1] > 1:
        broadcast_object_list(result)
    if result[1] is not None:
        raise InstilError(result[1])
    return result[0]


def shared(parts: Sequence[P], work: Callable[[P], R]) -> list[R]:
    """The results of all parts, in order, on every process; each is computed by one process.

    Every process must call this function with the same parts. Results do not depend on the number
    of processes.
    """
    return shared_stream(parts, lambda share: map(work, share))


def shared_stream(parts: Sequence[P], work: Callable[[Sequence[P]], Iterable[R]]) -> list[R]:
    """Like `shared`, by work that turns the parts of a process into as many results, in order."""
    rank, count = place()
    mine = list(work(parts[rank::count]))
    if count == 1:
        return mine
    everybody = gather_object([mine])
    return [everybody[number % count][number // count] for number in range(len(parts))]
