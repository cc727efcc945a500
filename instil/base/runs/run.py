"""A run's life: its folder, its checkpoints, and whether it may be resumed."""

import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock
from torch import Tensor, nn
from torch.optim import Optimizer

from instil.base import checkpoint
from instil.base.config import validate
from instil.base.errors import InstilError, Stopped
from instil.base.files import write_text
from instil.base.processes import on_main
from instil.base.runs import log
from instil.base.runs.monitor import METRICS, Monitor, new_folder, note
from instil.base.runs.writer import Signals, claim

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
        self.meta["processes"] = accelerator.num_processes
        self.lock: FileLock | None = None  # of the first process
        self.finite: Tensor | None = None  # () whether gradients were, since the last look at them
        self.folder, found = on_main(lambda: self._prepare(resume, steps))
        self.new = found is None
        self.signals = Signals()
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
        with self.monitor:
            self.signals.updating = True
            for report in reports:
                now = report.norm.isfinite()  # on every process alike, as the norms are
                self.finite = now if self.finite is None else self.finite & now
                last, number = report.step == self.monitor.steps, self.signals.agreed()
                saving = report.step % self.recipe.save_every == 0 or last or number > 0
                logging = report.step % self.recipe.log_every == 0 or last
                if (saving or logging) and not self.finite.item():
                    self._refuse_infinite(report.step)
                if logging:
                    values = self._averaged(report.losses)
                    self.monitor.log(report.step, values)
                    self.accelerator.log(values, step=report.step)
                if saving:
                    self.save()
                if number:
                    raise self._stopped(number)
                with self.signals.at_once():
                    yield report
        self.signals.updating = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Stop at signals inside the block; at its end, other processes may write the run.

        A new run that fails before its first update leaves no folder.

        Raises:
            Stopped: A signal came, and the run was saved.
        """
        try:
            with self.signals.heeded(self._stop_at_once):
                yield
        except Stopped:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            raise
        except Exception:
            if self.lock and self.new and self.state.step == 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            if self.lock:
                self.lock.release(force=True)

    def save(self) -> None:
        """Write a checkpoint on the first process; the others wait."""
        on_main(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        state = self.state
        checkpoint.save(
            self.folder / "checkpoints",
            state.step,
            state.modules(),
            state.optimizers(),
            self.meta,
            self.recipe.keep,
        )

    def _averaged(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean losses over all processes."""
        if self.accelerator.num_processes == 1:
            return {key: loss.item() for key, loss in losses.items()}
        values = self.accelerator.reduce(torch.stack(list(losses.values())), "mean")
        return dict(zip(losses, values.tolist(), strict=True))

    def _stop_at_once(self, number: int) -> NoReturn:
        """Stop between two updates, on the first process alone."""
        step = self.state.step
        saved = any(step == checkpoint.read_meta(f)["step"] for f in self._checkpoints())
        if not saved and (self.finite is None or self.finite.item()):
            self._write_checkpoint()
        raise self._stopped(number)

    def _stopped(self, number: int) -> Stopped:
        return Stopped(
            f"{signal.Signals(number).name}: stopped after update {self.state.step} of "
            f"{self.monitor.steps}; the same command with --resume {self.folder} goes on",
            number,
        )

    def _checkpoints(self) -> list[Path]:
        return checkpoint.find(self.folder / "checkpoints")

    def _refuse_infinite(self, step: int) -> NoReturn:
        raise FloatingPointError(
            f"step {step} or just before: gradients are not finite; last good checkpoint: "
            f"{self._checkpoints()[-1]}. Try a lower learning rate, gradient clipping, or "
            "precision=no"
        )

    def _prepare(self, resume: str | None, steps: int) -> tuple[Path, Path | None]:
        """The run's folder, locked, and the checkpoint to continue from."""
        recipe = self.recipe
        if resume is None:
            folder, found = new_folder(Path(recipe.output), recipe.name), None
        else:
            folder, found = locate(resume or newest(recipe.output, recipe.name))
        self.lock = claim(folder)
        if found is not None:
            saved = checkpoint.read_meta(found)
            # Keys that are newer than the checkpoint had their defaults.
            known = validate(type(recipe), saved.get("recipe", {})).model_dump(mode="json")
            check_same(found, saved | {"recipe": known}, self.meta, recipe.MAY_CHANGE)
            self._check_progress(folder, found, saved, steps)
            set_aside_later(folder, found)
        return folder, found

    def _check_progress(
        self, folder: Path, found: Path, saved: Mapping[str, Any], steps: int
    ) -> None:
        """Refuse fewer updates than are done; say what a resumed run does otherwise."""
        done, before, now = saved["step"], saved.get("processes"), self.meta["processes"]
        if steps < done:
            raise InstilError(
                f"{found}: {done} updates are done and the recipe asks for {steps}; ask for more, "
                "or resume from an earlier checkpoint"
            )
        if steps == done:
            note(f"{folder}: all {done} updates are done; only what follows them is made again")
        if before not in (None, now):
            note(f"{folder}: was written by {before} process(es), now {now}: sums are rounded anew")

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


def set_aside_later(folder: Path, found: Path) -> None:
    """Move checkpoints later than `found`, with a copy of the metrics, out of a run's way."""
    later = [each for each in checkpoint.find(folder / "checkpoints") if each.name > found.name]
    if not later:
        return
    aside = new_folder(folder / "set-aside", f"after-{found.name}")
    if (folder / METRICS).exists():
        shutil.copy2(folder / METRICS, aside)
    for each in later:
        each.rename(aside / each.name)
    note(f"{folder}: goes on from {found.name}; later checkpoints are set aside in {aside}")


def newest(root: str, name: str) -> Path:
    """The folder of the latest run below `root` whose recipe has this name.

    Folders that are called `name`, `name-2`, … come in this order, after any other.

    Raises:
        InstilError: There is none.
    """
    line = re.compile(rf"^name: ['\"]?{re.escape(name)}['\"]?$", re.MULTILINE)
    runs = [
        path.parent
        for path in Path(root).glob(f"*/{RECIPE}")
        if line.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    if not runs:
        raise InstilError(
            f"{Path(root) / name}: no run of that name to resume; without --resume it starts"
        )

    def number(run: Path) -> int:
        match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", run.name)
        return int(match[1] or 1) if match else 0

    return max(runs, key=lambda run: (number(run), run.stat().st_mtime))


def check_same(
    source: Path, saved: Mapping[str, Any], now: Mapping[str, Any], may_change: Sequence[str]
) -> None:
    """Refuse to go on under a recipe, or on inputs, the checkpoint was not made with.

    Raises:
        InstilError: Keys differ that a weight depends on; the message lists them and what may
            change.
    """
    free = ("step", "processes", *(f"recipe.{key}" for key in may_change))
    old, new = flatten(saved), flatten(now)
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
