"""Prints the versions that one end of setup.cfg's ranges installs, as constraints for pip.

    python -m tests.checks.bounds oldest|newest

The oldest end is held back by the lower bounds; the newest by nothing. Needs the package packaging
and nothing else.
"""

import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).parents[2] / "setup.cfg"


def lower_bounds(setup: Path = SETUP) -> list[str]:
    """What a setup.cfg and its extra `dev` require at least, each as an exact version."""
    config = ConfigParser()
    config.read_string(setup.read_text())
    lines = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    return sorted(
        f"{wanted.name}=={bound.version}"
        for wanted in map(Requirement, lines.split("\n")[1:])
        for bound in wanted.specifier
        if bound.operator in (">=", "==")
    )


if __name__ == "__main__":
    print("\n".join(lower_bounds() if sys.argv[1:] == ["oldest"] else []))  # noqa: T201
