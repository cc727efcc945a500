"""`python -m eval fid`, `clip` and `extractor`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval import card
from eval.answer import Answer, Rows, device
from eval.quality import features, metrics, sources
from eval.quality.clip import Clip
from eval.quality.evaluation import Evaluation
from eval.quality.evaluator import Evaluator
from eval.quality.extraction import extract
from eval.quality.further import further
from eval.quality.images import sampled, student_sampler
from eval.quality.sources import Source
from eval.questions import Clip as ClipQuestion
from eval.questions import Extractor, Fid
from instil.base import data
from instil.base.config import validate
from instil.base.errors import InstilError
from instil.base.files import check_output
from instil.base.processes import on_main
from instructors.conditions.conditioning import Conditioning
from instructors.conditions.prompt_files import read_prompts
from instructors.prepare import prepare
from students.load import load as load_student
from students.source import Source as StudentSource


def fid(question: Fid) -> Answer:
    """Fréchet distance and its relatives.

    Raises:
        InstilError: Images, instructor, reference or extractor are missing or do not fit.
    """
    check_output("--save-stats", question.save_stats, ".npz")
    every = [_of_instructor(question)] if question.instructor else _of_images(question)
    facts = every[0]
    if len(every) > 1:
        facts = facts | {"extractors": {each["fd_name"]: each for each in every}}
    return Answer(facts["protocol"], [row for each in every for row in _rows(each)], facts)


def _rows(facts: dict[str, Any]) -> Rows:
    """Figures as a table: their spread over sampling seeds, or a standard error of one set."""
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict) and "mean" in value:
            name = facts["fd_name"] if key == "fd" else key.replace("_", " ")
            error = value["std"] if value["seeds"] > 1 else facts.get(f"{key}_stderr")
            spread = "" if error is None else f"{error:.4f}"
            rows.append({"figure": name, "mean": _number(value["mean"]), "±": spread})
    if facts["floor"] is not None:
        name = f"floor of {facts['fd_name']} (n={facts['floor_n']})"
        rows.append({"figure": name, "mean": _number(facts["floor"]), "±": ""})
    return rows


def _number(value: float) -> str:
    """Four decimals, never a negative zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def _of_images(question: Fid) -> list[dict[str, Any]]:
    weights = Path(question.weights) if question.weights else None
    where = device()
    extractors = [
        features.load(name, weights, where.type, question.protocol)
        for name in question.extractor.split(",")
    ]

    def read(text: str) -> Source:
        return sources.load(
            text,
            any(each.colour for each in extractors),
            all(each.mixed for each in extractors),
            question.workers,
            question.batch,
        )

    references = metrics.load_references(question.reference, extractors, read)
    if question.save_stats:
        on_main(partial(metrics.save_statistics, references[0], question.save_stats))
    source = _student(question, where) if question.student else read(str(question.images))
    held_out = extract(read(question.held_out), extractors) if question.held_out else None
    answers = []
    for number, found in enumerate(extract(source, extractors)):
        reference = references[number]
        facts: dict[str, Any] = {"fd_name": reference.extractor.name}
        facts |= metrics.spread([metrics.figures(found, reference)], source.count)
        facts |= on_main(partial(further, found, reference, source))
        facts |= {"floor": None, "floor_n": None}
        if held_out:
            facts["floor"] = metrics.distance_of(held_out[number].values, reference)
            facts["floor_n"] = len(held_out[number])
        name = reference.extractor.name
        facts["protocol"] = f"{name}, {source.count} images against {reference.name}"
        answers.append(facts)
    return answers


def _student(question: Fid, where: torch.device) -> Source:
    student = load_student(StudentSource(weights=str(question.student))).to(where)
    name = f"samples of {question.student}"
    return sampled(student_sampler(student), name, 0, question.samples, where, question.batch)


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
            f"--prompts {question.prompts}: expected a prompt per image, got {len(prompts)} "
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
