"""What torch's allocator gave out, by its own account: the truth that plans are held to."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocated(work: Callable[[], object]) -> int:
    """The most bytes on the CPU at once while `work` runs, of those it asked for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    profiler: Any = record.profiler
    events = profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
