"""An instructor's model card: the figures in it, the training data it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instil.base import data
from instil.base.card import origin_of
from instil.base.errors import InstilError
from instil.base.files import write_text

HEADING = "## Figures"


def write_figures(folder: Path, facts: Mapping[str, Any], command: str) -> None:
    """Put a table of figures under its heading in `README.md`, replacing an earlier one.

    Args:
        folder: The instructor's.
        facts: Figures as `{mean, std, n}`, with `protocol`, `nfe`, `floor` and `floor_n`.
        command: What reproduces them.
    """
    rows = [
        f"| {key.replace('_', ' ')} | {each['n']} | {each['mean']:.4f} ± {each['std']:.4f} |"
        for key, each in facts.items()
        if isinstance(each, Mapping) and "mean" in each
    ]
    if facts["floor"] is not None:
        rows.append(f"| floor of fd: held-out images | {facts['floor_n']} | {facts['floor']:.4f} |")
    table = "\n".join(["| figure | images | mean ± sd |", "| --- | --- | --- |", *rows])
    path = folder / "README.md"
    kept = path.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
    write_text(
        path,
        f"{kept}\n\n{HEADING}\n\n{facts['protocol']}; Heun's method, {facts['nfe']} evaluations an "
        f"image. `fd matched` is on as many images as the floor.\n\n{table}\n\n`{command}`\n",
    )


def training_images(folder: Path) -> data.Images | None:
    """The images that the card of an instructor trained here names, if they can be had unchanged.

    Args:
        folder: The instructor's.
    """
    origin = origin_of(folder)
    if origin is None:
        return None
    try:
        images = data.load(origin.data)
    except InstilError:
        return None
    return images if images.digest() == origin.digest else None
