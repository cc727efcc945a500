"""Measure images or models, and train the offline extractors they are measured with."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from eval.protocol import Protocol
from instil.config import validate
from instil.errors import InstilError, command


@command
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    fid = commands.add_parser(
        "fid",
        help="distance of images, or of an instructor's samples, to a reference",
        allow_abbrev=False,
    )
    what = fid.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", metavar="SOURCE", help="a folder, .zip, .npz or data set")
    what.add_argument("--instructor", metavar="SOURCE", help="a folder, embedded name or hub id")
    fid.add_argument(
        "--reference",
        required=True,
        help="images, a .npz of mu and sigma, a name torch-fidelity knows such as cifar10-train, "
        "or (for an instructor) `instructor`: its own samples",
    )
    fid.add_argument("--extractor", default="inception", help="inception, digits, or a file")
    fid.add_argument("--weights", metavar="FILE", help="local Inception weights of torch-fidelity")
    fid.add_argument("--held-out", metavar="SOURCE", help="more of the reference: the floor")
    fid.add_argument("--samples", type=int, default=10_000, help="images per seed [%(default)s]")
    fid.add_argument("--seeds", type=int, default=3, help="sampling seeds [%(default)s]")
    fid.add_argument("--prompts", metavar="FILE", help="for a text model: a prompt per line")
    fid.add_argument("--guidance", type=float, default=1.0, help="on the instructor [%(default)s]")
    fid.add_argument("--steps", type=int, default=18, help="Heun steps [%(default)s]")
    fid.add_argument(
        "--record", action="store_true", help="keep the figures in the instructor's folder"
    )
    fid.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    fid.set_defaults(run=_fid)

    extractor = commands.add_parser(
        "extractor", help="train an offline feature extractor", allow_abbrev=False
    )
    extractor.add_argument("--data", required=True, metavar="SOURCE", help="images with classes")
    extractor.add_argument("--held-out", required=True, metavar="SOURCE", help="for the accuracy")
    extractor.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors")
    extractor.add_argument("--seed", type=int, default=0)
    extractor.add_argument("--json", type=Path, metavar="PATH", help="also write the facts there")
    extractor.set_defaults(run=_extractor)

    clip = commands.add_parser("clip", help="how well images fit their prompts", allow_abbrev=False)
    clip.add_argument("--images", required=True, metavar="SOURCE", help="as for fid")
    clip.add_argument("--prompts", required=True, metavar="FILE", help="a line per image, in order")
    clip.add_argument("--model", required=True, help="a CLIP model: a folder or hub id")
    clip.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    clip.set_defaults(run=_clip)

    latents = commands.add_parser(
        "latents", help="may this frozen latent space be used on that data?", allow_abbrev=False
    )
    latents.add_argument("--source", required=True, help="images the latent space was made for")
    latents.add_argument("--target", required=True, help="images it would be used on")
    kind = latents.add_mutually_exclusive_group()
    kind.add_argument("--dim", type=int, help="principal directions; default: what both need")
    kind.add_argument("--autoencoder", metavar="DIR", help="of diffusers, in place of directions")
    latents.add_argument(
        "--sigma", type=float, default=0.5, help="lowest noise level of use [%(default)s]"
    )
    latents.add_argument(
        "--nats", type=float, default=1.0, help="what it may cost an image [%(default)s]"
    )
    latents.add_argument("--seed", type=int, default=0, help="of the split [%(default)s]")
    latents.add_argument("--plot", type=Path, metavar="PNG", help="draw the curves there")
    latents.add_argument("--json", type=Path, metavar="PATH", help="also write all figures there")
    latents.set_defaults(run=_latents)

    arguments = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    arguments.command_line = f"python -m eval {shlex.join(words)}"
    rows, facts = arguments.run(arguments)
    from instil.report import show, write_json

    show(facts.get("protocol", arguments.command), rows)
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


def _fid(arguments: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, Any]]:
    if arguments.record and not arguments.instructor:
        raise InstilError("--record: figures are kept with an instructor; give --instructor")
    measure = _measure_images if arguments.images else _measure_instructor
    facts = measure(arguments)
    figures = [key for key, value in facts.items() if isinstance(value, dict) and "mean" in value]
    name = facts["fd_name"]
    rows = [
        {
            "figure": name if key == "fd" else key.replace("_", " "),
            "mean": f"{facts[key]['mean']:.4f}",
            "sd": f"{facts[key]['std']:.4f}",
        }
        for key in figures
    ]
    if facts["floor"] is not None:
        floor = f"{facts['floor']:.4f}"
        rows.append({"figure": f"floor of {name} (n={facts['floor_n']})", "mean": floor, "sd": ""})
    return rows, facts


def _measure_images(arguments: argparse.Namespace) -> dict[str, Any]:
    from eval import features, metrics
    from instil import data

    images = data.load(arguments.images)
    weights = Path(arguments.weights) if arguments.weights else None
    extractor = features.load(arguments.extractor, weights, _device().type)
    reference = metrics.load_reference(arguments.reference, extractor)
    found = metrics.spread([metrics.measure(images.pixels, reference)], len(images))
    facts: dict[str, Any] = {"fd_name": extractor.name, **found}
    facts |= {"floor": None, "floor_n": None}
    if arguments.held_out:
        held_out = data.load(arguments.held_out)
        facts["floor"] = metrics.distance(held_out.pixels, reference)
        facts["floor_n"] = len(held_out)
    facts["protocol"] = f"{extractor.name}, {len(images)} images against {reference.name}"
    return facts


def _measure_instructor(arguments: argparse.Namespace) -> dict[str, Any]:
    from eval import card
    from eval.yardstick import Yardstick
    from instructors.conditioning import Conditioning
    from instructors.prepare import prepare

    settings = {
        "extractor": arguments.extractor,
        "weights": arguments.weights,
        "reference": arguments.reference,
        "held_out": arguments.held_out,
        "samples": arguments.samples,
        "seeds": arguments.seeds,
        "instructor_steps": arguments.steps,
    }
    protocol = validate(Protocol, settings)
    asked = {"prompts": arguments.prompts, "guidance": arguments.guidance}
    conditioning = validate(Conditioning, asked)
    instructor = prepare(arguments.instructor, conditioning, device=_device())
    yardstick = Yardstick(protocol, instructor, _device())
    facts: dict[str, Any] = {"fd_name": yardstick.name}
    facts["nfe"] = (2 * arguments.steps - 1) * instructor.denoiser.evaluations
    facts |= yardstick.instructor_figures(record=arguments.record)
    facts |= yardstick.floor() | {"protocol": yardstick.describe()}
    if arguments.record:
        card.write_figures(instructor.card.folder, facts, arguments.command_line)
    return facts


def _extractor(arguments: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, Any]]:
    from eval import features
    from instil import data

    if arguments.out.suffix != ".safetensors":
        raise InstilError(f"--out {arguments.out}: expected a file ending in .safetensors")
    images, held_out = data.load(arguments.data), data.load(arguments.held_out)
    facts = features.train(images, held_out, arguments.out, arguments.seed)
    return [{"fact": key, "value": str(value)} for key, value in facts.items()], facts


def _clip(arguments: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, Any]]:
    from eval.clip import Clip
    from instil import data
    from instructors.prompts import read_prompts

    images, prompts = data.load(arguments.images), read_prompts(arguments.prompts)
    if len(images) != len(prompts):
        raise InstilError(
            f"--prompts {arguments.prompts}: expected a line per image, got {len(prompts)} lines "
            f"for {len(images)} images"
        )
    scores = Clip(arguments.model, _device())(images.pixels, prompts)
    facts = {"clip": scores.mean().item(), "n": len(scores), "model": arguments.model}
    facts["protocol"] = f"CLIP score of {arguments.model}, {len(scores)} images"
    return [{"figure": "CLIP score", "mean": f"{facts['clip']:.3f}"}], facts


def _latents(arguments: argparse.Namespace) -> tuple[list[dict[str, str]], dict[str, Any]]:
    from eval import latent_report
    from eval.autoencoders import load_autoencoder
    from eval.plots import latent_prices
    from instil import data
    from instil.report import environment

    for option, path in (("--plot", arguments.plot), ("--json", arguments.json)):
        if path and not path.parent.is_dir():
            raise InstilError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if arguments.plot and arguments.plot.suffix != ".png":
        raise InstilError(f"--plot {arguments.plot}: expected a file ending in .png")
    source, target = data.load(arguments.source), data.load(arguments.target)
    features = source.pixels[0].numel()
    sigma, nats = arguments.sigma, arguments.nats
    latent_report.check_settings(sigma, nats, arguments.dim, features)
    domains = latent_report.Domains.of(source, target, arguments.seed)
    if arguments.autoencoder:
        name, device = arguments.autoencoder, _device()
        autoencoder = load_autoencoder(name, target.shape, device)
        facts = latent_report.autoencoder_report(domains, autoencoder, name, sigma, nats, device)
    else:
        facts = latent_report.linear_report(domains, arguments.dim, sigma, nats)
    facts["protocol"] = (
        f"{arguments.source} on {arguments.target}: {facts['dim']} dimensions, "
        f"{facts['target']['held_out']} held-out images"
    )
    facts |= {"command": arguments.command_line, "environment": environment()}
    if arguments.plot:
        latent_prices(facts, arguments.plot)
    print(facts["verdict"]["sentence"])
    return latent_report.table(facts), facts


def _device() -> Any:
    from accelerate import Accelerator

    return Accelerator().device


if __name__ == "__main__":
    sys.exit(main())
