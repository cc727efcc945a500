"""Files for `distill … preflight=FILE`, read as that command reads them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from distill.__main__ import _layers
from distill.preflight import check
from distill.recipe import Recipe
from instil.base.config.recipes import resolve
from instructors.files.sources import network_folder
from instructors.files.weights import weights_hash
from tests.checks.hostile.mutations import json_bytes, warp


@functools.cache
def sound() -> dict[str, Any]:
    """What a preflight of the embedded digits would have written."""
    return {
        "latents": None,
        "transfer": None,
        "horizon": {"T_eps": {"value": 13.8, "stderr": 0.4}, "distil": True},
        "distill": {
            "instructor": "digits",
            "sha256": weights_hash(network_folder("digits")),
            "T_eps": 13.8,
            "sigma_range": [0.002, 80.0],
            "distil": True,
        },
        "verdict": "Distil digits, with noise up to sigma 13.8 at least.",
    }


ODD_NAMES = (
    "",
    ".",
    "..",
    "/",
    "\0",
    "p.json",
    "x" * 300,
    "a/b",
    "~",
    "\ud800",
    "digits-0-4",
    "a\n",
)
ODD_NUMBERS = (0, -1, 1e-320, 1e308, 10**400, "13.8", None, True, [1], 80.0, 0.002)


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """A file of a preflight, and what the command settles by it."""
    dice = Random(f"{start}/preflights/{number}")
    path, content = folder / "p.json", dict(sound())
    if dice.random() < 0.5:  # the part that is read
        part = dict(content["distill"])
        key = dice.choice(list(part))
        part[key] = {
            "instructor": dice.choice(ODD_NAMES),
            "sha256": dice.choice(("", "0123456789aB", "0123456789ab\n", "0" * 13, 12, None)),
            "sigma_range": [dice.choice(ODD_NUMBERS), dice.choice(ODD_NUMBERS)],
            "distil": dice.choice((False, 1, "true", None)),
        }.get(key, dice.choice(ODD_NUMBERS))
        content["distill"] = part if dice.random() < 0.7 else warp(part, dice)
    path.write_bytes(
        json_bytes(content, dice) if dice.random() < 0.8 else json.dumps(content).encode()
    )
    where = dice.choice((str(path),) * 12 + (str(folder), str(folder / "none.json"), "x" * 300))

    def read() -> None:
        check(resolve(Recipe, _layers("digits", [f"preflight={where}"], None)))

    return read
