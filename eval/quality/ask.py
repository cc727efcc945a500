"""`python -m eval fid`, `clip` and `extractor`."""

from functools import partial
from pathlib import Path
from typing import Any

from eval import card
from eval.answer import Answer, device
from eval.quality import features, metrics
from eval.quality.clip import Clip
from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import Evaluator
from eval.questions import Clip as ClipQuestion
from eval.questions import Extractor, Fid
from instil.base import data
from instil.base.config import validate
from instil.base.errors import InstilError
from instil.base.files import check_output
from instil.base.processes import on_main
from instructors.conditions.conditioning import Conditioning
from instructors.conditions.prompts import read_prompts
from instructors.prepare import prepare


def fid(question: Fid) -> Answer:
    """Fréchet distance and its relatives.

    Raises:
        InstilError: Images, instructor, reference or extractor are missing or do not fit.
    """
    facts = _of_images(question) if question.images else _of_instructor(question)
    name = facts["fd_name"]
    rows = [
        {
            "figure": name if key == "fd" else key.replace("_", " "),
            "mean": f"{value['mean']:.4f}",
            "sd": f"{value['std']:.4f}",
        }
        for key, value in facts.items()
        if isinstance(value, dict) and "mean" in value
    ]
    if facts["floor"] is not None:
        floor = f"{facts['floor']:.4f}"
        rows.append({"figure": f"floor of {name} (n={facts['floor_n']})", "mean": floor, "sd": ""})
    return Answer(facts["protocol"], rows, facts)


def _of_images(question: Fid) -> dict[str, Any]:
    images = data.load(str(question.images))
    weights = Path(question.weights) if question.weights else None
    extractor = features.load(question.extractor, weights, device().type)
    reference = metrics.load_reference(question.reference, extractor)
    figures = metrics.spread([metrics.measure(images.pixels, reference)], len(images))
    facts: dict[str, Any] = {"fd_name": extractor.name, **figures}
    facts |= {"floor": None, "floor_n": None}
    if question.held_out:
        held_out = data.load(question.held_out)
        facts["floor"] = metrics.distance(held_out.pixels, reference)
        facts["floor_n"] = len(held_out)
    facts["protocol"] = f"{extractor.name}, {len(images)} images against {reference.name}"
    return facts


def _of_instructor(question: Fid) -> dict[str, Any]:
    same = ("extractor", "weights", "reference", "held_out", "samples", "seeds")
    settings = {name: getattr(question, name) for name in same}
    evaluation = validate(Evaluation, settings | {"instructor_steps": question.steps})
    asked = {"prompts": question.prompts, "guidance": question.guidance}
    conditioning = validate(Conditioning, asked)
    instructor = prepare(str(question.instructor), conditioning, device=device())
    evaluator = Evaluator(evaluation, instructor, device())
    facts: dict[str, Any] = {"fd_name": evaluator.name}
    facts["nfe"] = (2 * question.steps - 1) * instructor.denoiser.evaluations
    facts |= evaluator.instructor_figures(record=question.record)
    facts |= evaluator.floor() | {"protocol": evaluator.describe()}
    if question.record:
        on_main(partial(card.write_figures, instructor.card.folder, facts, question.command))
    return facts


def clip(question: ClipQuestion) -> Answer:
    """The mean CLIP score of images with their prompts.

    Raises:
        InstilError: There is not one prompt per image, or something cannot be loaded.
    """
    images, prompts = data.load(question.images), read_prompts(question.prompts)
    if len(images) != len(prompts):
        raise InstilError(
            f"--prompts {question.prompts}: expected a line per image, got {len(prompts)} lines "
            f"for {len(images)} images"
        )
    scores = Clip(question.model, device())(images.pixels, prompts)
    facts = {"clip": scores.mean().item(), "n": len(scores), "model": question.model}
    facts["protocol"] = f"CLIP score of {question.model}, {len(scores)} images"
    return Answer(
        facts["protocol"], [{"figure": "CLIP score", "mean": f"{facts['clip']:.3f}"}], facts
    )


def extractor(question: Extractor) -> Answer:
    """Train an offline feature extractor and write it.

    Raises:
        InstilError: The images have no classes, or the file cannot be written.
    """
    check_output("--out", question.out, ".safetensors")
    images, held_out = data.load(question.data), data.load(question.held_out)
    facts = features.train(images, held_out, question.out, question.seed)
    rows = [{"fact": key, "value": str(value)} for key, value in facts.items()]
    return Answer("extractor", rows, facts)
