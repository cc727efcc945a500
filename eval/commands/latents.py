"""May this frozen latent space be used on that data?"""

import argparse
from pathlib import Path
from typing import Any

from eval.commands import Answer, device
from instil.base.files import check_output


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "latents",
        help="may this frozen latent space be used on that data?",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--source", required=True, help="images the latent space was made for")
    parser.add_argument("--target", required=True, help="images it would be used on")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--dim", type=int, help="principal directions; default: what both need")
    kind.add_argument("--autoencoder", metavar="DIR", help="of diffusers, in place of directions")
    parser.add_argument(
        "--sigma", type=float, default=0.5, help="lowest noise level of use [%(default)s]"
    )
    parser.add_argument(
        "--nats", type=float, default=1.0, help="what it may cost an image [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split [%(default)s]")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the curves there")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all figures there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
    from eval.latents import ask
    from eval.latents.autoencoders import load_autoencoder
    from eval.latents.plot import latent_prices
    from instil.base import data
    from instil.base.runs.report import environment

    check_output("--plot", arguments.plot, ".png")
    source, target = data.load(arguments.source), data.load(arguments.target)
    features = source.pixels[0].numel()
    sigma, nats = arguments.sigma, arguments.nats
    ask.check_settings(sigma, nats, arguments.dim, features)
    domains = ask.Domains.of(source, target, arguments.seed)
    if arguments.autoencoder:
        name, where = arguments.autoencoder, device()
        autoencoder = load_autoencoder(name, target.shape, where)
        facts = ask.autoencoder_report(domains, autoencoder, name, sigma, nats, where)
    else:
        facts = ask.linear_report(domains, arguments.dim, sigma, nats)
    facts["protocol"] = (
        f"{arguments.source} on {arguments.target}: {facts['dim']} dimensions, "
        f"{facts['target']['held_out']} held-out images"
    )
    facts |= {"command": arguments.command_line, "environment": environment()}
    if arguments.plot:
        latent_prices(facts, arguments.plot)
    return ask.table(facts), facts
