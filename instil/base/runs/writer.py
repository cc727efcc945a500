"""The one process that writes a run, and the signals that stop it after a whole update."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import distributed

from instil.base.errors import InstilError
from instil.base.processes import is_main, place

LOCK = "writer.lock"
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# What torchrun and `accelerate launch` set: without them, a shell that ends is no launcher.
LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_DYNAMO_BACKEND" in os.environ
PARENT = os.getppid()
# Ctrl-C reaches a worker of torchrun twice: from the terminal, and passed on by torchrun.
ECHO = 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0  # seconds


def claim(folder: Path) -> FileLock:
    """Lock a run's folder for this process, until it ends or the lock is released.

    The system gives the lock back however the process ends. Another run object of the same process
    shares it.

    Raises:
        InstilError: Another process writes this run.
    """
    path = folder / LOCK
    lock = FileLock(path, thread_local=False, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        writer = path.read_text(encoding="utf-8").strip() or "written by another process"
        raise InstilError(
            f"{folder}: is being {writer}; wait until that ends, or stop it first"
        ) from None
    held = path.read_text(encoding="utf-8")
    if not held or held.startswith("written by"):  # else the library's own, on disks without locks
        text = f"written by process {os.getpid()} on {socket.gethostname()}\n"
        path.write_text(text, encoding="utf-8")
    return lock


class Signals:
    """Signals that stop a run: after the update under way, or at once where there is none.

    The second signal ends the process, whatever it does.

    Attributes:
        updating: Whether an update is under way.
        received: The first signal's number, 0 for none.
    """

    def __init__(self) -> None:
        self.updating, self.received, self._since = False, 0, 0.0
        self._stop: Callable[[int], None] | None = None  # inside `heeded`
        self._group: Any = distributed.new_group(backend="gloo") if place()[1] > 1 else None

    @contextmanager
    def heeded(self, stop: Callable[[int], None]) -> Iterator[None]:
        """Handle signals inside the block, but for those that are ignored, as `nohup` does.

        Args:
            stop: Saves the run and raises; called with a signal's number where there is no update.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread alone
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._stop = stop
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            self._stop = None  # which refers to the run
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that any process received, or SIGTERM where one lost its launcher; else 0.

        Every process must ask after the same update.
        """
        if not self.received and LAUNCHED and os.getppid() != PARENT:
            self.received = signal.SIGTERM
        if self._group is not None:
            number = torch.tensor(self.received)
            distributed.all_reduce(number, distributed.ReduceOp.MAX, self._group)
            self.received = int(number)
        return self.received

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block no update is under way."""
        self.updating = False
        if self.received:  # since the processes agreed
            self._stop_first(self.received)
        yield
        self.updating = True

    def _receive(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = number, now
            if not self.updating:
                self._stop_first(number)
        elif now - self._since >= ECHO:
            os._exit(128 + number)

    def _stop_first(self, number: int) -> None:
        """Stop the first process; its launcher ends the others, and so does their next exchange."""
        if self._stop and is_main():
            self._stop(number)
