"""A run's life: its folder, its checkpoints, and whether it may be resumed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from instil.base import checkpoint
from instil.base.config import validate
from instil.base.errors import InstilError
from instil.base.files import write_text
from instil.base.processes import on_main
from instil.base.runs import log
from instil.base.runs.monitor import METRICS, Monitor, new_folder, note

RECIPE = "recipe.yaml"


class State(Protocol):
    """What is saved: named modules and optimizers, and the number of updates done."""

    step: int

    def modules(self) -> dict[str, nn.Module]: ...
    def optimizers(self) -> dict[str, Optimizer]: ...


@dataclass(frozen=True)
class Report:
    """One update, as tensors on the device: reading them makes a GPU wait, so read them seldom.

    Attributes:
        step: Updates done.
        losses: () mean losses by the name they are logged under.
        norm: () gradient norms before clipping, summed; the same on every process.
    """

    step: int
    losses: dict[str, Tensor]
    norm: Tensor


class Run:
    """One run: a new folder, or one that is continued.

    Args:
        recipe: Its folder, its intervals, and the keys that may change on a resume.
        steps: Updates of the whole run.
        batch: Images per update.
        state: Restored in place when continued.
        facts: Hashes of inputs, which must be the same when continued.
        resume: None for a new run, "" to continue the newest of that name, or a run's folder, or a
            checkpoint in one.
        accelerator: The first process makes the folder.

    Raises:
        InstilError: The folder cannot be made, or there is nothing that may be continued.
    """

    def __init__(
        self,
        recipe: Any,
        steps: int,
        batch: int,
        state: State,
        facts: Mapping[str, Any],
        resume: str | None,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.state, self.accelerator = recipe, state, accelerator
        self.meta = {"recipe": recipe.model_dump(mode="json"), **facts}
        self.folder, found = on_main(lambda: self._prepare(resume))
        if found is not None:
            checkpoint.restore(found, state.modules(), state.optimizers())
            state.step = checkpoint.read_meta(found)["step"]
        if accelerator.is_main_process:
            log.keep(self.folder)
        self.monitor = Monitor(self.folder, steps, state.step, batch, accelerator.is_main_process)
        on_main(self._write_recipe)  # of a run that is refused, the recipe stays as it is
        if found is None:
            self.save()

    def follow(self, reports: Iterator[Report]) -> Iterator[Report]:
        """Log, check and save as the recipe says; pass each report on when that is done.

        Raises:
            FloatingPointError: Gradients are not finite; found when numbers are read anyway, so no
                step waits for it, and never saved.
        """
        finite, steps = None, self.monitor.steps
        with self.monitor:
            for report in reports:
                now = report.norm.isfinite()  # on every process alike, as the norms are
                finite = now if finite is None else finite & now
                last = report.step == steps
                saving = report.step % self.recipe.save_every == 0 or last
                logging = report.step % self.recipe.log_every == 0 or last
                if (saving or logging) and not finite.item():
                    self._stop(report.step)
                if logging:
                    values = {key: value.item() for key, value in report.losses.items()}
                    self.monitor.log(report.step, values)
                    self.accelerator.log(values, step=report.step)
                if saving:
                    self.save()
                yield report

    def save(self) -> None:
        """Write a checkpoint on the first process; the others wait."""
        state, recipe = self.state, self.recipe
        on_main(
            lambda: checkpoint.save(
                self.folder / "checkpoints",
                state.step,
                state.modules(),
                state.optimizers(),
                self.meta,
                recipe.keep,
            ),
        )

    def _stop(self, step: int) -> None:
        found = checkpoint.find(self.folder / "checkpoints")
        raise FloatingPointError(
            f"step {step} or just before: gradients are not finite; last good checkpoint: "
            f"{found[-1]}. Try a lower learning rate, gradient clipping, or precision=no"
        )

    def _prepare(self, resume: str | None) -> tuple[Path, Path | None]:
        """The run's folder and the checkpoint to continue from."""
        recipe = self.recipe
        if resume is None:
            folder, found = new_folder(Path(recipe.output), recipe.name), None
        else:
            folder, found = locate(resume or newest(recipe.output, recipe.name))
        if found is not None:
            saved = checkpoint.read_meta(found)
            # Keys that are newer than the checkpoint had their defaults.
            known = validate(type(recipe), saved.get("recipe", {})).model_dump(mode="json")
            check_same(found, saved | {"recipe": known}, self.meta, recipe.MAY_CHANGE)
        return folder, found

    def _write_recipe(self) -> None:
        text = yaml.safe_dump(self.meta["recipe"], sort_keys=False)
        write_text(self.folder / RECIPE, text)


def locate(where: Path | str) -> tuple[Path, Path | None]:
    """A run's folder and its newest complete checkpoint, from either of the two.

    Raises:
        InstilError: It is neither, or its checkpoints are gone.
    """
    where = Path(where)
    if (where / checkpoint.META).exists():
        return where.parent.parent, where
    found = checkpoint.find(where / "checkpoints")
    if found:
        return where, found[-1]
    if not (where / RECIPE).exists() or (where / METRICS).exists():
        raise InstilError(f"{where}: no complete checkpoint there to resume from")
    note(f"{where}: stopped before its first checkpoint, so it starts again")
    return where, None


def newest(root: str, name: str) -> Path:
    """The folder of the latest run `name`, `name-2`, … below `root`.

    Raises:
        InstilError: There is none.
    """
    runs = {
        int(match[1] or 1): path.parent
        for path in Path(root).glob(f"{name}*/{RECIPE}")
        if (match := re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", path.parent.name))
    }
    if not runs:
        raise InstilError(
            f"{Path(root) / name}: no run of that name to resume; without --resume it starts"
        )
    return runs[max(runs)]


def check_same(
    source: Path, saved: Mapping[str, Any], now: Mapping[str, Any], may_change: Sequence[str]
) -> None:
    """Refuse to go on under a recipe, or on inputs, the checkpoint was not made with.

    Raises:
        InstilError: Keys differ that a weight depends on; the message lists them and what may
            change.
    """
    free = ("step", *(f"recipe.{key}" for key in may_change))
    old, new = _flatten(saved), _flatten(now)
    faults = [
        f"{key.removeprefix('recipe.')}: was {old.get(key, 'unset')}, is {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if faults:
        raise InstilError(
            f"{source}: made by another recipe; {'; '.join(faults[:6])}. "
            f"Only these may change: {', '.join(may_change)}"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
