"""Up to which noise level a diffusion model is worth running."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer
from instil.base.errors import InstilError
from instil.base.files import check_output


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "horizon",
        help="up to which noise level a diffusion model is worth running",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, metavar="SOURCE", help="an instructor or a recipe"
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="images; the instructor's own samples if not"
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=5,
        help="trainings that each leave out a part of the images; 1 takes the model as it is, on "
        "images it was not trained on [%(default)s]",
    )
    parser.add_argument(
        "--reference", default="gaussian", help="gaussian, zero or standard [%(default)s]"
    )
    parser.add_argument(
        "--trained-on", metavar="SOURCE", help="where the model's card names no data"
    )
    parser.add_argument("--tolerance", type=float, default=0.02, help="nats [%(default)s]")
    parser.add_argument("--lowest", type=float, default=0.02, help="noise level [%(default)s]")
    parser.add_argument("--samples", type=int, default=1000, help="images at most [%(default)s]")
    parser.add_argument("--draws", type=int, default=2, help="of noise per image [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bound", action="store_true", help="also the paper's bound, on the training images"
    )
    parser.add_argument(
        "--subgaussian", type=float, metavar="R", help="of --bound, beside 0.1, 1, 10 and 100"
    )
    parser.add_argument(
        "--kappas", metavar="K,K", help="strengths of the recipe's penalty to choose from, and 0"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the certificate")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of a recipe")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.horizon import ask
    from eval.horizon.plot import horizon_curve
    from instil.base.runs.report import environment

    check_output("--plot", arguments.plot, ".png")
    question = ask.Question(
        arguments.folds,
        arguments.reference,
        arguments.tolerance,
        arguments.lowest,
        arguments.samples,
        arguments.draws,
        arguments.seed,
    )
    alone = arguments.folds == 1
    if arguments.bound and not alone:
        raise InstilError("--bound: of one model and its training images; give --folds 1")
    constant = arguments.subgaussian
    if constant is not None and not (arguments.bound and 0 < constant < float("inf")):
        raise InstilError(f"--subgaussian {constant:g}: expected a positive number beside --bound")
    if alone and arguments.kappas is not None:
        raise InstilError("--kappas: nothing is trained with --folds 1")
    if alone and arguments.overrides:
        raise InstilError(f"{arguments.overrides[0]}: nothing is trained with --folds 1")
    if not alone and arguments.trained_on:
        raise InstilError("--trained-on: folds are trained on --data; leave it out")
    more: list[dict[str, str]] = []
    extra: dict[str, Any] = {}
    if alone:
        found = ask.as_it_is(
            arguments.model,
            arguments.data,
            question,
            arguments.trained_on,
            bound=arguments.bound,
        )
    elif arguments.kappas is not None:
        found, more, extra["kappa"] = ask.by_kappa(
            arguments.model,
            arguments.data,
            question,
            _numbers("--kappas", arguments.kappas),
            arguments.overrides,
        )
    else:
        found = ask.by_folds(arguments.model, arguments.data, question, arguments.overrides)
    if arguments.plot:
        horizon_curve(found.horizon, arguments.plot)
    rows, facts = found.rows() + more, found.facts() | extra
    if arguments.bound:
        terms, facts["bound"] = ask.bounds_of(found, question, constant)
        rows += terms
    return rows, facts | {"command": arguments.command_line, "environment": environment()}


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InstilError(
            f"{option} {text}: expected numbers with commas between, such as 0.1,0.5"
        ) from None
