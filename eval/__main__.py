"""Measure images or models, and train the offline extractors they are measured with."""

import argparse
import os
import shlex
import sys

from eval.commands import clip, extractor, fid, horizon, latents, preflight, transfer, vae_bound
from instil.base.errors import InstilError, command
from instil.base.files import check_output

COMMANDS = (fid, extractor, clip, latents, horizon, vae_bound, transfer, preflight)


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for each in COMMANDS:
        each.add(commands)
    arguments = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    arguments.command_line = f"python -m eval {shlex.join(words)}"
    if arguments.command != "fid" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InstilError(f"{arguments.command}: only fid is shared by processes; start one")
    check_output("--json", arguments.json)
    rows, facts = arguments.run(arguments)
    from instil.base.processes import is_main
    from instil.base.runs.report import show, write_json

    if not is_main():
        return 0
    verdict = facts.get("verdict")
    if verdict:
        print(verdict["sentence"] if isinstance(verdict, dict) else verdict)
    show(facts.get("protocol", arguments.command), rows)
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
