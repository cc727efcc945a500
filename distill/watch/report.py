"""The report of a finished run: figures of student and instructor, and the table printed."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from distill.recipe import Generator, Recipe
from eval.quality.evaluator import Evaluator
from eval.quality.images import Sampler
from instil.base.runs import log
from instil.base.runs.report import show
from instructors.instructor import Card


def add_figures(
    report: dict[str, Any],
    samplers: Mapping[str, Sampler],
    evaluator: Evaluator | None,
    clip_score: Callable[[Sampler], float] | None,
) -> None:
    """Measure the samplers of a run on fresh seeds.

    Args:
        report: Gains a section of figures per sampler, the floor and the ratio of distances.
        samplers: `instructor`, `student` and, of a refined generator, `start`.
        evaluator: Measures distances; None measures none.
        clip_score: Mean CLIP score of a sampler; None measures none.
    """
    if evaluator:
        report["instructor"] |= evaluator.instructor_figures()
        for name in (name for name in samplers if name != "instructor"):
            report[name] |= evaluator.score(samplers[name])
        report["ratio"] = report["student"]["fd"]["mean"] / report["instructor"]["fd"]["mean"]
        report |= evaluator.floor()
        for name, sampler in samplers.items():
            report[name]["images_per_second"] = round(evaluator.speed(sampler), 1)
    if clip_score:
        for name in ("instructor", "student"):
            report[name]["clip"] = clip_score(samplers[name])


def card_facts(recipe: Recipe, instructor: Card, report: Mapping[str, Any]) -> dict[str, Any]:
    """The facts `students.export.export` puts into a student's card."""
    figures = {"NFE": str(report["student"]["nfe"])}
    measured = [name for name in ("start", "student", "instructor") if "fd" in report.get(name, {})]
    for name in measured:
        fd = report[name]["fd"]
        figures[f"{report['fd_name']}, {name}"] = f"{fd['mean']:.3f} ± {fd['std']:.3f}"
    if measured:
        figures["protocol"] = report["protocol"]
    student = recipe.student
    start = {"start": student.weights} if isinstance(student, Generator) else {}
    return start | {
        "instructor": instructor.source,
        "licence": instructor.licence,
        "figures": figures,
        "recipe": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
    }


def show_report(report: Mapping[str, Any]) -> None:
    """Print the final table."""
    fd_name, rows = report["fd_name"], []
    for name in (name for name in ("instructor", "start", "student") if name in report):
        figures = report[name]
        row = {"": name, "NFE": str(figures["nfe"])}
        if fd_name:
            row[fd_name] = f"{figures['fd']['mean']:.3f} ± {figures['fd']['std']:.3f}"
            if report["floor"] is not None:
                row[f"at n={report['floor_n']}"] = _mean(figures, "fd_matched")
            for key in ("precision", "recall", "copies"):
                row[key] = _mean(figures, key)
            row["images/s"] = f"{figures['images_per_second']:,.0f}"
        if "clip" in figures:
            row["CLIP score"] = f"{figures['clip']:.2f}"
        rows.append(row)
    if fd_name and report["floor"] is not None:
        floor = dict.fromkeys(rows[0], "") | {"": "floor: held-out images"}
        rows.append(floor | {f"at n={report['floor_n']}": f"{report['floor']:.3f}"})
    show(f"\n{report['protocol']}", rows)
    facts = [
        f"{report['seconds']:.0f} s",
        f"{report['forwards_per_update']} forwards per update",
        f"peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB",
    ]
    if fd_name:
        facts.insert(0, f"student / instructor {report['ratio']:.2f}")
    line = "  ·  ".join(facts)
    print(line)  # noqa: T201, the last line of the table
    log.append(line)


def _mean(figures: Mapping[str, Any], key: str) -> str:
    return f"{figures[key]['mean']:.3f}" if key in figures else "-"
