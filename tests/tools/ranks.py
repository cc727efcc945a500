"""Several processes that know of each other, as torchrun starts them, without its seconds.

Python's fork server imports what they need once; each is forked from it.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

IMPORTED = ["distill.distillation", "distill.__main__", "eval.__main__", "instructors.__main__"]


def run(module: str, words: Sequence[object], count: int = 2, timeout: float = 300.0) -> str:
    """Call `main(words)` of a module in `count` processes on the CPU; returns all they printed.

    Raises:
        AssertionError: One of them failed or took longer than `timeout` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, __name__])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.touch()
        processes = []
        for rank in range(count):
            environment = dict(os.environ) | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (module, [str(word) for word in words], log, environment)
            processes.append(context.Process(target=_carry_out, args=arguments))
            processes[-1].start()
        for process in processes:
            process.join(timeout)
            process.kill()  # nothing to one that has ended
            process.join()
        codes, said = [process.exitcode for process in processes], log.read_text()
    assert codes == [0] * count, f"{module} {words}: {codes}\n{said}"
    return said


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _carry_out(module: str, words: list[str], log: Path, environment: dict[str, str]) -> None:
    """What each process does."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    code = import_module(module).main(words)
    sys.stdout.flush()
    sys.exit(code)
