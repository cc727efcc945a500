"""Latents, horizon and transfer at once, and what follows for a distillation."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer
from eval.commands.transfer import add_options, question_of
from instil.base.files import check_output


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "preflight",
        help="latents, horizon and transfer at once, and what follows for a distillation",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--instructor", required=True, metavar="SOURCE")
    parser.add_argument("--target", metavar="SOURCE", help="images of one's own")
    parser.add_argument("--source", metavar="SOURCE", help="images the instructor was made for")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE.json",
        help="for `distill … preflight=FILE.json`; the adapted instructor goes beside it",
    )
    add_options(parser)
    parser.set_defaults(run=run, json=None)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.preflight import preflight
    from instil.base.runs.report import environment, write_json

    check_output("--out", arguments.out, ".json")
    rows, facts = preflight(
        arguments.instructor,
        arguments.source,
        arguments.target,
        question_of(arguments),
        arguments.out,
        arguments.command_line,
    )
    facts |= {"command": arguments.command_line, "environment": environment()}
    write_json(arguments.out, facts)
    return rows, facts
