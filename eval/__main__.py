"""Measure images or models, and train the offline extractors they are measured with."""

import argparse
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path

from eval import questions
from eval.answer import Answer
from eval.options import options, question_of
from eval.questions import Question
from instil.base.errors import InstilError, command
from instil.base.files import check_output

# By command: its question, and the function that answers it, imported only then (torch is slow).
COMMANDS: dict[str, tuple[type[Question], str]] = {
    "fid": (questions.Fid, "eval.quality.ask:fid"),
    "extractor": (questions.Extractor, "eval.quality.ask:extractor"),
    "clip": (questions.Clip, "eval.quality.ask:clip"),
    "latents": (questions.Latents, "eval.latents.ask:ask"),
    "horizon": (questions.Horizon, "eval.horizon.ask:ask"),
    "vae-bound": (questions.VaeBound, "eval.vae.ask:ask"),
    "transfer": (questions.Transfer, "eval.transfer.ask:ask"),
    "preflight": (questions.Preflight, "eval.preflight:ask"),
}


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    arguments = _parser().parse_args(argv)
    name, words = arguments.name, sys.argv[1:] if argv is None else argv
    if name != "fid" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InstilError(
            f"eval {name}: runs in one process only; start it with plain `python -m eval {name}`"
        )
    arguments.command = f"python -m eval {shlex.join(words)}"
    kind, where = COMMANDS[name]
    question = question_of(kind, arguments)
    json = question.out if isinstance(question, questions.Preflight) else arguments.json
    check_output("--json", json)
    module, function = where.split(":")
    _report(getattr(import_module(module), function)(question), question, json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (question, _) in COMMANDS.items():
        text = question.__doc__ or ""
        each = commands.add_parser(
            name, help=text.split("\n")[0].rstrip("."), description=text, allow_abbrev=False
        )
        options(each, question)
        if question is not questions.Preflight:  # whose answer is --out
            each.add_argument("--json", type=Path, help="JSON file to write all figures to")
    return parser


def _report(answer: Answer, question: Question, json: Path | None) -> None:
    from instil.base.processes import is_main
    from instil.base.runs.report import environment, show, write_json

    if not is_main():
        return
    if answer.verdict:
        print(answer.verdict)
    show(answer.title, answer.rows)
    if json:
        asked = {"command": question.command, "environment": environment()}
        write_json(json, answer.facts | asked)


if __name__ == "__main__":
    sys.exit(main())
