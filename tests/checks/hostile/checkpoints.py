"""A run's folder, damaged, that is then resumed or started from."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distill.recipe import Recipe
from distill.warm_start import warm_start
from instil.base import checkpoint
from instil.base.runs.accelerator import accelerator_for
from instil.base.runs.monitor import METRICS
from instil.base.runs.run import RECIPE, Run
from tests.checks.hostile.headers import lie
from tests.checks.hostile.mutations import damage, json_bytes
from tests.checks.hostile.sandbox import scratch

FACTS = {"instructor_sha256": "0123456789ab"}


class Small:
    """A state of two little networks and their optimizers after two updates."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.step = 2
        self.networks = {
            name: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for name in ("student", "fake")
        }
        self.adams: dict[str, Optimizer] = {
            f"{name}-optimizer": torch.optim.Adam(network.parameters(), lr=0.01)
            for name, network in self.networks.items()
        }
        self.update()

    def update(self) -> None:
        """One step of everything, along gradients that are drawn.

        Torch may refuse to compute them in a process forked from one that has computed others.
        """
        for network, adam in zip(self.networks.values(), self.adams.values(), strict=True):
            with torch.no_grad():
                network(torch.randn(5, 3))  # running statistics
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            adam.step()

    def modules(self) -> dict[str, nn.Module]:
        return dict(self.networks)

    def optimizers(self) -> dict[str, Optimizer]:
        return dict(self.adams)

    def fingerprint(self) -> bytes:
        """Changes with any weight."""
        tensors = (t for n in self.networks.values() for t in n.state_dict().values())
        return b"".join(tensor.numpy().tobytes() for tensor in tensors)


@functools.cache
def accelerator() -> Any:
    """Of this process."""
    return accelerator_for(None, (), ".")


@functools.cache
def sound() -> tuple[Recipe, Path]:
    """A recipe, and the folder of a run of it that can be resumed."""
    root = scratch()
    recipe = Recipe(name="run", instructor="digits", output=str(root))
    run = Run(recipe, 9, 4, Small(0), FACTS, None, accelerator())
    run.monitor.log(1, {"loss": 0.5})
    run.monitor.log(2, {"loss": 0.4})
    return recipe, run.folder


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """A damaged run, and a resume of it or a new run from its weights."""
    dice = Random(f"{start}/checkpoints/{number}")
    recipe, whole = sound()
    place = folder / "run"
    shutil.copytree(whole, place)
    inside = next((place / "checkpoints").iterdir())
    for _ in range(dice.choice((1, 1, 1, 2))):
        _damage(place, inside, dice)
    state = Small(1)
    if dice.random() < 0.15:
        source = dice.choice((place, inside, inside / "student.safetensors", "", "x" * 300))
        network = state.networks["student"]
        return lambda: (warm_start(network, str(source), "student"), network(torch.zeros(2, 3)))
    where = str(dice.choice((place, place, inside)))
    before = state.fingerprint()

    def read() -> None:
        try:
            checkpoint.restore(inside, state.modules(), state.optimizers())
        except BaseException:
            assert state.fingerprint() == before, "refused, and changed"
            raise
        run = Run(recipe, 9, 4, state, FACTS, where, accelerator())
        assert isinstance(state.step, int), "a step that is no number"
        state.update()
        run.monitor.log(state.step + 1, {"loss": 0.3})

    return read


def _damage(place: Path, inside: Path, dice: Random) -> None:
    """Change one file of a run, or what stands in its place."""
    files = [file for file in sorted(inside.iterdir()) if file.is_file()]
    about = inside / checkpoint.META
    if not files or not about.is_file():
        return
    way = dice.random()
    if way < 0.35:
        content = json.loads((sound()[1] / about.relative_to(place)).read_text())
        about.write_bytes(json_bytes(content, dice))
        return
    path = dice.choice([*files, place / METRICS, place / RECIPE])
    if not path.is_file():
        return
    if way < 0.65:
        path.write_bytes(damage(path.read_bytes(), dice))
    elif way < 0.8 and path.suffix == ".safetensors":
        path.write_bytes(_lie(path, dice))
    elif way < 0.9:
        path.unlink()
        match dice.randrange(4):
            case 0:
                path.mkdir()
            case 1:
                path.symlink_to(path)
            case 2:
                path.symlink_to(place)
    elif way < 0.95:
        path.write_bytes(dice.choice(files).read_bytes())
    elif path.name == METRICS:
        line = dice.choice(
            (b"{}\n", b"[1]\n", b'{"step": "x"}\n', b'{"step": null}\n', b"3}\n", b"\xff\n")
        )
        path.write_bytes(path.read_bytes() + line)


def _lie(path: Path, dice: Random) -> bytes:
    try:
        return lie(path, dice)
    except (ValueError, KeyError, IndexError):  # damaged before
        return damage(path.read_bytes(), dice)
