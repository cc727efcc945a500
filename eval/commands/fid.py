"""Distance of images, or of an instructor's samples, to a reference."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from eval.commands import Answer, device
from eval.quality.protocol import Protocol
from instil.base.config import validate
from instil.base.errors import InstilError


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "fid",
        help="distance of images, or of an instructor's samples, to a reference",
        description=__doc__,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", metavar="SOURCE", help="a folder, .zip, .npz or data set")
    what.add_argument("--instructor", metavar="SOURCE", help="a folder, embedded name or hub id")
    parser.add_argument(
        "--reference",
        required=True,
        help="images, a .npz of mu and sigma, a name torch-fidelity knows such as cifar10-train, "
        "or (for an instructor) `instructor`: its own samples",
    )
    parser.add_argument("--extractor", default="inception", help="inception, digits, or a file")
    parser.add_argument(
        "--weights", metavar="FILE", help="local Inception weights of torch-fidelity"
    )
    parser.add_argument("--held-out", metavar="SOURCE", help="more of the reference: the floor")
    parser.add_argument("--samples", type=int, default=10_000, help="images per seed [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds [%(default)s]")
    parser.add_argument("--prompts", metavar="FILE", help="for a text model: a prompt per line")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="on the instructor [%(default)s]"
    )
    parser.add_argument("--steps", type=int, default=18, help="Heun steps [%(default)s]")
    parser.add_argument(
        "--record", action="store_true", help="keep the figures in the instructor's folder"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Carry it out."""
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
    from eval.quality import features, metrics
    from instil.base import data

    images = data.load(arguments.images)
    weights = Path(arguments.weights) if arguments.weights else None
    extractor = features.load(arguments.extractor, weights, device().type)
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
    from eval.quality.yardstick import Yardstick
    from instil.base.processes import on_main
    from instructors.conditions.conditioning import Conditioning
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
    instructor = prepare(arguments.instructor, conditioning, device=device())
    yardstick = Yardstick(protocol, instructor, device())
    facts: dict[str, Any] = {"fd_name": yardstick.name}
    facts["nfe"] = (2 * arguments.steps - 1) * instructor.denoiser.evaluations
    facts |= yardstick.instructor_figures(record=arguments.record)
    facts |= yardstick.floor() | {"protocol": yardstick.describe()}
    if arguments.record:
        write = partial(card.write_figures, instructor.card.folder, facts, arguments.command_line)
        on_main(write)
    return facts
