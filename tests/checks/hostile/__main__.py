"""Hostile input: mutated and crafted files of every kind that a command reads.

    python -m tests.checks.hostile [--cases N] [--seed N] [--kinds K,K] [--first N]

A case is accepted, or refused by one clear sentence, in 5 seconds and 512 MB, and what is refused
leaves nothing behind. Anything else is a fault. It is named by its number: the same seed with
`--first NUMBER --cases 1` makes it again.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness import Rows, command
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from tests.checks.hostile import checkpoints, headers, images, pickles, preflights, recipes
from tests.checks.hostile.sandbox import Case, Outcome, hunt

# By kind: what makes a case of a seed, a number and a folder.
KINDS: dict[str, Callable[..., Any]] = {
    "recipes": recipes.case,
    "checkpoints": checkpoints.case,
    "safetensors": headers.case,
    "pickles": pickles.case,
    "images": images.case,
    "preflights": preflights.case,
}


def outcomes(kind: str, cases: int, seed: int = 0, first: int = 0) -> list[Outcome]:
    """The outcomes of some cases of a kind."""
    case: Case = partial(KINDS[kind], seed)
    found = []
    for outcome in hunt(case, range(first, first + cases)):
        found.append(outcome)
        if outcome.verdict == "fault":
            note(f"{kind} {outcome.number}: {outcome.why}")
    return found


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """One line for each kind."""
    kinds = arguments.kinds.split(",") if arguments.kinds else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise InstilError(f"--kinds {kind}: expected some of {', '.join(KINDS)}")
    rows, facts = [], {}
    for kind in kinds:
        found = outcomes(kind, arguments.cases, arguments.seed, arguments.first)
        faults = [each for each in found if each.verdict == "fault"]
        count = {
            verdict: sum(each.verdict == verdict for each in found)
            for verdict in ("accepted", "refused", "fault")
        }
        slowest, largest = (max(getattr(o, key) for o in found) for key in ("seconds", "bytes"))
        facts[kind] = count | {
            "cases": len(found),
            "slowest_seconds": slowest,
            "most_bytes": largest,
            "faults": [each.facts() for each in faults],
        }
        rows.append(
            {
                "kind": kind,
                "cases": f"{len(found):,}",
                "accepted": f"{count['accepted']:,}",
                "refused": f"{count['refused']:,}",
                "faults": f"{count['fault']:,}",
                "slowest, s": f"{slowest:.2f}",
                "most memory, MB": f"{largest / 2**20:.0f}",
            }
        )
    return rows, {"kinds": facts, "seed": arguments.seed, "first": arguments.first}


if __name__ == "__main__":
    options = {
        "--cases": {"type": int, "default": 1000, "help": "of each kind [%(default)s]"},
        "--seed": {"type": int, "default": 0, "help": "of all cases [%(default)s]"},
        "--first": {"type": int, "default": 0, "help": "number of the first case [%(default)s]"},
        "--kinds": {"metavar": "KIND,…", "help": f"some of {', '.join(KINDS)} [all]"},
    }
    sys.exit(command(run, "Hostile input", options))
