"""The oldest and the newest versions that setup.cfg admits: the tests, and the wheel by itself.

    python -m tests.checks.matrix [--ends oldest,newest] [--slow] [--folder DIR]

Each end has a clone of what is committed and two environments. In the first the clone is installed
with its extra `dev`, tested, and made into a wheel. In the second there is the wheel alone, with
what it requires, and commands are typed in an empty folder. What the oldest end holds back are the
lower bounds of setup.cfg, as exact versions; the newest end is what pip makes of the ranges today.

Environments are made in the temporary folder, which TMPDIR moves, and deleted; `--folder` keeps the
first, and takes what is there up to date. An end takes 12 GB with the libraries of CUDA.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Rows, command
from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from tests.checks.bounds import lower_bounds
from tests.checks.documented import SHORT_DISTILLATION

ROOT = Path(__file__).parents[2]
ENDS = ("oldest", "newest")
OPTIONS: dict[str, dict[str, Any]] = {
    "--ends": {"default": ",".join(ENDS), "help": "some of them, with commas [%(default)s]"},
    "--slow": {"action": "store_true", "help": "run the slow tests too"},
    "--folder": {"type": Path, "help": "keep the environments of the tests there, or use them"},
}
VERSIONS = ("torch", "diffusers", "accelerate", "torch-fidelity")
COMMANDS = (
    f"distill digits {SHORT_DISTILLATION}",
    "eval fid --instructor digits --reference digits --samples 50 --extractor digits",
    "students sample digits-gan --seeds 0-3 --grid out.png",
    "instructors inspect digits",
)


def counts(output: str) -> dict[str, int]:
    """How many tests ended how, of the last line of pytest's output; errors are failures."""
    found = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", output.splitlines()[-1]):
        found["failed" if word == "error" else word] += int(number)
    return found


class Environment:
    """A virtual environment of this Python.

    Args:
        folder: Where it is, or is made.
        constraints: A file of versions that pip keeps to.
    """

    def __init__(self, folder: Path, constraints: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "venv", folder]
        subprocess.run(words, check=True)
        self.folder, self.constraints = folder, constraints

    def python(self, *words: str | Path, cwd: Path, check: bool = True) -> tuple[int, str]:
        """Run its Python; its exit code and all that it says.

        Raises:
            InstilError: It fails, and that is checked.
        """
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        paths = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            [self.folder / "bin" / "python", *words],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name not in hidden} | paths,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            raise InstilError(f"{' '.join(map(str, words))} failed: {done.stdout[-2000:]}")
        return done.returncode, done.stdout

    def install(self, *what: str | Path) -> None:
        """Install with pip."""
        options = ("--quiet", "--upgrade", "--upgrade-strategy", "eager")
        words = ("-m", "pip", "install", *options, "--constraint", self.constraints, *what)
        self.python(*words, cwd=self.folder)

    def versions(self) -> dict[str, str]:
        """Of all that is installed."""
        listed = self.python("-m", "pip", "list", "--format", "json", cwd=self.folder)[1]
        packages = json.loads(next(x for x in listed.splitlines() if x.startswith("[")))
        return {each["name"].lower().replace("_", "-"): each["version"] for each in packages}


def tested(environment: Environment, checkout: Path, slow: bool) -> dict[str, Any]:
    """Install a checkout with its extra `dev`, and run its tests."""
    environment.install("--editable", f"{checkout}[dev]")
    chosen = () if slow else ("-m", "not slow")
    output = environment.python("-m", "pytest", "-q", "-rfE", *chosen, cwd=checkout, check=False)[1]
    failures = re.findall(r"^(?:FAILED|ERROR) .*", output, re.M)
    note("\n".join([output.splitlines()[-1], *failures]))
    return {"tests": counts(output), "failures": failures, "versions": environment.versions()}


def used(environment: Environment, wheel: Path, empty: Path) -> dict[str, Any]:
    """Install a wheel, and type commands in an empty folder."""
    environment.install(wheel)
    ended = {}
    for words in COMMANDS:
        ended[words], said = environment.python("-m", *words.split(), cwd=empty, check=False)
        note(f"python -m {words}: {ended[words]}" + f"\n{said}" * bool(ended[words]))
    return {"commands": ended, "versions_of_the_wheel": environment.versions()}


def tried(end: str, slow: bool, folder: Path, kept: Path) -> dict[str, Any]:
    """Test and use one end of the ranges.

    Args:
        end: One of `ENDS`.
        slow: Whether the slow tests run.
        folder: An empty one.
        kept: The environment of the tests.
    """
    checkout, empty, constraints = folder / "checkout", folder / "empty", folder / "constraints.txt"
    empty.mkdir()
    constraints.write_text("\n".join(lower_bounds(ROOT / "setup.cfg") if end == "oldest" else ()))
    clone = ["git", "clone", "--quiet", ROOT, checkout]
    subprocess.run(clone, check=True)
    development = Environment(kept, constraints)
    found = tested(development, checkout, slow)
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    development.python(*build, cwd=checkout)
    (wheel,) = folder.glob("*.whl")
    return found | used(Environment(folder / "alone", constraints), wheel, empty)


def _rows(found: dict[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    for end, facts in found.items():
        well = sum(code == 0 for code in facts["commands"].values())
        yield (
            {"versions": end}
            | {name: facts["versions"][name] for name in VERSIONS}
            | {f"tests {word}": f"{number:,}" for word, number in facts["tests"].items()}
            | {"commands of the wheel that ended well": f"{well} of {len(COMMANDS)}"}
        )


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Try each end."""
    ends = arguments.ends.split(",")
    if not set(ends) <= set(ENDS):
        raise InstilError(f"--ends {arguments.ends}: expected some of {', '.join(ENDS)}")
    found = {}
    for end in ends:
        with tempfile.TemporaryDirectory() as name:
            note(f"{end} versions")
            kept = arguments.folder.resolve() if arguments.folder else Path(name) / "tests"
            found[end] = tried(end, arguments.slow, Path(name), kept / end)
    return list(_rows(found)), {"ends": found, "slow": arguments.slow}


if __name__ == "__main__":
    sys.exit(command(run, "Versions", OPTIONS))
