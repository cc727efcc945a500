"""The command `instil`: `instil distill …` is `python -m distill …`, and so on."""

import argparse
import sys
from importlib import import_module

from instil.base import __version__
from instil.base.shadowed import HOME, PACKAGES

HELP = {
    "distill": "distil a diffusion model into a one- or few-step generator",
    "eval": "measure images or models: fid, horizon, latents, transfer, …",
    "instructors": "train, inspect, convert or adapt diffusion models",
    "students": "train, inspect, convert or sample generators",
}


def main(argv: list[str] | None = None) -> int:
    """Run one of the four commands; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="instil",
        description="Data-free distillation of diffusion models.",
        epilog="`instil COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"instil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in HELP.items():
        commands.add_parser(name, help=text)
    words = sys.argv[1:] if argv is None else argv
    command = parser.parse_args(words[:1]).command
    _import_packages()
    return import_module(f"{command}.__main__").main(words[1:])


def _import_packages() -> None:
    """Import our packages, whatever the working folder holds."""
    sys.path.insert(0, str(HOME))
    for name in PACKAGES:
        import_module(name)
    del sys.path[0]


if __name__ == "__main__":
    sys.exit(main())
