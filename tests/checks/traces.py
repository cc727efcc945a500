"""What a run has left on disk: where it was, and whether that is what another run has left."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distill.recipe import Recipe
from instil.base import checkpoint
from instil.base.errors import InstilError
from instil.base.runs.monitor import METRICS

PHASES = (
    "before the first checkpoint",
    "updates",
    "save",
    "evaluation on the way",
    "final evaluation",
    "export",
    "after the end",
)


def phase(run: Path, recipe: Recipe) -> str:
    """Where a run was when it was killed, by the files it left."""
    saved = checkpoint.find(run / "checkpoints")
    if any((run / "checkpoints").glob(".step-*.partial")):
        return "save"
    if not saved:
        return "before the first checkpoint"
    if (run / "report.json").exists():
        return "after the end" if (run / "student").exists() else "export"
    step = checkpoint.read_meta(saved[-1])["step"]
    last = step == recipe.train.steps
    looks = {(record["step"], key) for record in records(run) for key in record}
    measured = not _due(step, recipe.evaluation.every, last) or (step, "fd") in looks
    drawn = (
        not recipe.pictures_every
        or not _due(step, recipe.pictures_every, last)
        or (step, "gauges") in looks
    )
    if not (measured and drawn):
        return "evaluation on the way"
    return "final evaluation" if last else "updates"


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of all that a finished run ships and goes on from, and of its numbers but times."""
    last = checkpoint.find(run / "checkpoints")[-1]
    found = weights(last) | weights(run / "student") | weights(run / "best")
    numbers = [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in records(run)
    ]
    report = json.loads((run / "report.json").read_text())
    figures = [report[who][key] for who in ("instructor", "student") for key in ("fd", "nfe")]
    return found | {METRICS: _digest(numbers), "report.json": _digest(figures)}


def weights(folder: Path) -> dict[str, str]:
    """Hashes of the weight files below a folder, by name."""
    return {
        str(path.relative_to(folder.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def differences(run: Path, reference: Path) -> list[str]:
    """Which checkpoints and exports that can be seen are not what the reference had there.

    Args:
        run: May have been killed.
        reference: A run that was not, and kept all its checkpoints.
    """
    faults = []
    for folder in [*(run / "checkpoints").glob("step-*"), *run.glob("student")]:
        whole = reference / folder.relative_to(run)
        if weights(folder) != weights(whole):
            faults.append(f"{folder}: not the weights of {whole}")
        if folder.name == "student":
            continue
        try:
            if checkpoint.read_meta(folder)["step"] != int(folder.name.removeprefix("step-")):
                faults.append(f"{folder}: says another step")
            for path in folder.glob("*.safetensors"):
                checkpoint.read_tensors(path)
        except InstilError as error:
            faults.append(str(error))
    return faults


def _due(step: int, every: int | None, last: bool) -> bool:
    return every is not None and (step % every == 0 or last)


def records(run: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds, but for a last line that a kill, or a look meanwhile, cuts."""
    text = (run / METRICS).read_text() if (run / METRICS).exists() else ""
    lines = text.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
