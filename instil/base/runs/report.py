"""Reports: tables on the screen, JSON files, and the facts of the machine."""

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from instil.base import __version__
from instil.base.files import write_text
from instil.base.runs import log


def show(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table to stdout; the keys of the first row are its columns.

    One that is too wide for the terminal stands on its side, if it fits that way.
    """
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(title)
    without_end = console.options.update(width=10_000)
    tables = [_table(rows), _table(_turned(rows))]
    fitting = (
        t for t in tables if console.measure(t, options=without_end).maximum <= console.width
    )
    shown = next(fitting, tables[0])
    console.print(shown)
    with console.capture() as text:
        console.print(title, shown, sep="\n")
    log.append(text.get().rstrip())


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table()
    for number, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row.values())
    return table


def _turned(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Rows as columns, which takes names that differ; else the rows as they are."""
    first, *others = rows[0]
    names = [row[first] for row in rows]
    if len(set(names)) < len(names) or not others:
        return [dict(row) for row in rows]
    return [{first: key} | {row[first]: row[key] for row in rows} for key in others]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, str]:
    """The machine and the versions that a figure was measured with."""
    packages = ("torch", "diffusers", "accelerate", "torch-fidelity")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "device": device,
        "cores": str(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "instil": __version__,
    } | {name: version(name) for name in packages}


def peak_memory_bytes() -> int:
    """The most memory the process has held: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
