"""One evaluation of the student against the instructor's samplers: images per second and FD.

    python -m benchmarks.sampling [--steps N] [--json PATH]

The student is the shipped digits recipe after `--steps` updates. The instructor is sampled by this
project's Heun and by diffusers' own DPM-Solver++ (`EDMDPMSolverMultistepScheduler` in the pipeline
the instructor is stored as), at several numbers of network evaluations.
"""

import argparse
import sys
from functools import partial
from typing import Any

import torch

from benchmarks.convergence import default
from benchmarks.harness import Rows, command, paired
from benchmarks.runs import OPTIONS, distilled
from eval.quality.evaluator import Evaluator
from eval.quality.images import Sampler, generate, instructor_sampler, student_sampler
from instil.base.draws import Draws
from instil.base.runs.monitor import note
from instructors.instructor import Instructor

HEUN = (3, 5, 9, 18, 36)
SOLVER = (5, 10, 20, 40)
BATCH = 250


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """The table of all samplers."""
    torch.set_num_threads(arguments.threads)
    (made,) = distilled([default(arguments.steps, 0)], arguments.runs, arguments.jobs)
    instructor = made.instructor
    student = made.student(made.report["student"]["average"])
    evaluator = Evaluator(made.recipe.evaluation, instructor, torch.device("cpu"))
    samplers = {"student": (1, student_sampler(student))} | instructor_samplers(instructor)
    facts: dict[str, Any] = {}
    for name, (nfe, sampler) in samplers.items():
        note(name)
        found = evaluator.score(sampler)
        speed, faster = compared(samplers["student"][1], sampler)
        facts[name] = {
            "nfe": nfe,
            "fd": found["fd"],
            "images_per_second": speed,
            "student_is_faster_by": faster,
        }
    best = min((name for name in facts if name != "student"), key=lambda n: facts[n]["fd"]["mean"])
    rows = [
        {
            "sampler": name + (" (best)" if name == best else ""),
            "NFE": str(f["nfe"]),
            "FD": f"{f['fd']['mean']:.3f} ± {f['fd']['std']:.3f}",
            "images/s": f"{f['images_per_second']:,.0f}",
            "student is faster by": f"{f['student_is_faster_by']:.1f}x",
        }
        for name, f in facts.items()
    ]
    return rows, {"samplers": facts, "best": best}


def compared(student: Sampler, sampler: Sampler) -> tuple[float, float]:
    """Images per second of a sampler, and how many times as fast the student is beside it."""
    batches = (partial(generate, each, 0, BATCH, batch=BATCH) for each in (student, sampler))
    _, seconds, faster = paired(*batches, rounds=5, calls=1)
    return BATCH / seconds, faster


def instructor_samplers(instructor: Instructor) -> dict[str, tuple[int, Sampler]]:
    """By name, network evaluations per image and the sampler."""
    heun = {
        f"instructor, Heun, {steps} levels": (
            2 * steps - 1,
            instructor_sampler(instructor.denoiser, steps),
        )
        for steps in HEUN
    }
    dpm = {
        f"instructor, DPM-Solver++, {steps} levels": (steps, solver(instructor, steps))
        for steps in SOLVER
    }
    return heun | dpm


def solver(instructor: Instructor, steps: int) -> Sampler:
    """Diffusers' DPM-Solver++ on the instructor's own network and scheduler settings."""
    from diffusers import EDMDPMSolverMultistepScheduler, UNet2DModel

    folder = instructor.card.folder
    scheduler: Any = EDMDPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    network: Any = UNet2DModel.from_pretrained(folder, subfolder="unet")
    denoiser = instructor.denoiser

    def sample(draws: Draws) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        labels = draws.index % denoiser.classes if denoiser.classes else None
        x = draws.normal("latent", denoiser.shape) * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, time), time, class_labels=labels).sample
            x = scheduler.step(output, time, x).prev_sample
        return x

    return sample


if __name__ == "__main__":
    options = OPTIONS | {
        "--steps": {"type": int, "default": 500, "help": "student updates [%(default)s]"},
        "--threads": {"type": int, "default": 2, "help": "of the processor [%(default)s]"},
    }
    sys.exit(command(run, "Sampling the embedded digits instructor and its student", options))
