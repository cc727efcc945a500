"""Claims of the papers as numbered experiments: `python -m experiments 001.3`, or `--list`.

000 is transfer through a shared embedding (arXiv 2405.16837), 001 latent reuse (2605.13448),
002 the diffusion horizon (2506.00849). Reported figures are in `experiments/results`.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import experiments as package
from experiments.experiment import Experiment
from instil.base.errors import InstilError, command
from instil.base.runs.report import environment, show, write_json

RESULTS = Path(__file__).parent / "results"


def experiments() -> dict[str, Experiment]:
    """All of them by number: the `EXPERIMENTS` of the modules beside this one."""
    found: dict[str, Experiment] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            found |= getattr(loaded, "EXPERIMENTS", {})
    return dict(sorted(found.items()))


@command
def main(argv: list[str] | None = None) -> int:
    """Run experiments, or list them."""
    parser = argparse.ArgumentParser(prog="python -m experiments", allow_abbrev=False)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="such as 001.3")
    parser.add_argument("--list", action="store_true", help="print what there is")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the work")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.scale <= 1:
        raise InstilError(f"--scale {arguments.scale:g}: expected more than 0 and at most 1.")
    known = experiments()
    if arguments.list or not arguments.experiments:
        reported = "".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md"))
        rows = [
            {
                "number": name,
                "claim": each.claim,
                "minutes": f"{each.minutes:g}",
                "reported": "run" if f"## {name}" in reported else "not run",
            }
            for name, each in known.items()
        ]
        show("Experiments", rows)
        return 0
    if unknown := set(arguments.experiments) - set(known):
        raise InstilError(
            f"there is no experiment {', '.join(sorted(unknown))}; --list prints what there is."
        )
    facts = {}
    for name in arguments.experiments:
        rows, found = known[name].run(arguments.scale)
        show(f"{name}: {known[name].claim}", rows)
        facts[name] = found
    if arguments.json:
        write_json(arguments.json, facts | {"environment": environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
