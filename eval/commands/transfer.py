"""Does this instructor help on those images, and how should it be adapted?"""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer
from instil.base.errors import InstilError
from instil.base.files import check_output


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "transfer",
        help="does this instructor help on those images, and how should it be adapted?",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--instructor", required=True, metavar="SOURCE", help="the source")
    parser.add_argument("--target", required=True, metavar="SOURCE", help="images of one's own")
    add_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="fit the best arm to all, save it")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.transfer import ask
    from instil.base import data
    from instil.base.runs.accelerator import accelerator_for
    from instil.base.runs.report import environment
    from instructors.load import load

    if arguments.out and arguments.out.exists():
        raise InstilError(f"--out {arguments.out}: exists; name a new folder")
    check_output("--out", arguments.out)
    question = question_of(arguments)
    images, instructor = data.load(arguments.target), load(arguments.instructor)
    accelerator = accelerator_for(question.recipe.precision, (), ".")
    answer = ask.ask(instructor, images, question, accelerator)
    facts = answer.facts()
    facts |= {"command": arguments.command_line, "environment": environment()}
    if arguments.out:
        ask.refit(instructor, answer, question, accelerator, arguments.out, arguments.command_line)
        facts["out"] = str(arguments.out)
    return answer.rows(), facts


def add_options(parser: argparse.ArgumentParser) -> None:
    """What transfer and preflight share."""
    parser.add_argument(
        "--arms",
        default="scratch,frozen,finetune",
        help="of scratch, frozen, finetune, finetune-l2, lora [%(default)s]",
    )
    parser.add_argument("--folds", type=int, help="10 below 200 images, else 5")
    parser.add_argument("--samples", type=int, help="target images at most, at random; all if not")
    parser.add_argument("--draws", type=int, default=2, help="of noise per image [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as steps=300")


def question_of(arguments: argparse.Namespace) -> Any:
    """What the options ask."""
    from eval.transfer.ask import Question
    from instil.base.config import load_recipe
    from instructors.transfer.arms import Transfer

    recipe = load_recipe(Transfer, None, arguments.overrides, Path())
    arms = tuple(arguments.arms.split(","))
    options = arguments.folds, arguments.samples, arguments.seed, arguments.draws
    question = Question(arms, *options, recipe)
    question.check()
    return question
