"""A generalisation bound of a variational autoencoder, beside what it bounds."""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer, device


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "vae-bound",
        help="a generalisation bound of a variational autoencoder, beside what it bounds",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--autoencoder",
        required=True,
        metavar="DIR",
        help="an AutoencoderKL of diffusers; `mlp` trains a small one first",
    )
    parser.add_argument("--trained-on", required=True, metavar="SOURCE", help="its training images")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="other images")
    parser.add_argument(
        "--weight-noise", type=float, default=0.05, help="on the decoder's weights [%(default)s]"
    )
    parser.add_argument("--samples", type=int, default=1000, help="images at most [%(default)s]")
    parser.add_argument("--draws", type=int, default=8, help="of noise per image [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.vae import ask
    from instil.base import data
    from instil.base.runs.report import environment

    rows, facts = ask.report(
        arguments.autoencoder,
        data.load(arguments.trained_on),
        data.load(arguments.data),
        device(),
        weight_noise=arguments.weight_noise,
        samples=arguments.samples,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    return rows, facts | {"command": arguments.command_line, "environment": environment()}
