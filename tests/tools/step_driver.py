"""Trains tiny networks under every setting of the step test and saves them before and after.

Run by one process or several.
"""

import itertools
from pathlib import Path

import torch
from accelerate import Accelerator

from distill.divergences import Divergences
from distill.recipe import Method
from distill.trainer import State, train
from instil.base.config.choice import sections
from instil.base.levels import LogNormal
from instil.base.runs.accelerator import finish
from instructors.adapters.karras import Karras
from instructors.denoiser import Denoiser
from instructors.lora import Lora
from instructors.low_rank import shared_copy
from instructors.mlp import MLP
from students.one_step import OneStep

STEPS = 3
# Kind of divergence, whether the fake score shares its levels, micro-batches, updates of the fake.
SETTINGS = [*itertools.product(sections(Divergences), (True, False), (1, 4), (1, 3))]
WITH_ADAPTERS = [*itertools.product(("ikl", "sid"), (True,), (1, 4), (3,))]


def network(seed: int) -> Karras:
    torch.manual_seed(seed)
    return Karras(MLP(3, width=8, depth=1, classes=2).double(), (3,), 0.01, 20.0, 1.0, classes=2)


def adapted(instructor: Karras) -> Denoiser:
    """A fake score of adapters beside the instructor's weights."""
    fake = shared_copy(instructor, Lora(rank=2, alpha=3), 0, "fake.lora")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in fake.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return fake


def main(words: list[str]) -> None:
    out = Path(words[0])
    accelerator = Accelerator(cpu=True)
    settings = [(*each, False) for each in SETTINGS] + [(*each, True) for each in WITH_ADAPTERS]
    for kind, shared, accumulation, updates, lora in settings:
        own = None if shared else {"kind": "log_normal", "mean": 0.0}
        method = Method().replace(
            divergence=kind,
            levels={"kind": "log_uniform"},
            fake={"updates": updates, "levels": own, "optimizer": {"lr": 3e-3}},
            optimizer={"lr": 1e-3, "betas": [0.1, 0.99], "clip": 0.5},
            train={
                "steps": STEPS,
                "batch": 16,
                "accumulation": accumulation,
                "averages": [20],
                "rampup": 0.5,
            },
        )
        assert isinstance(method.fake.levels, LogNormal) != shared
        instructor = network(0).requires_grad_(False)
        fake = adapted(instructor) if lora else network(2)
        state = State.fresh(OneStep(network(1), 1.5), fake, method)
        before = {key: value.clone() for key, value in state.student.state_dict().items()}
        fake_before = {key: value.clone() for key, value in state.fake.state_dict().items()}
        for _ in train(state, instructor, method, accelerator):
            pass
        if accelerator.is_main_process:
            name = f"{kind}-{shared}-{accumulation}-{updates}{'-lora' * lora}.pt"
            torch.save(
                {
                    "method": method.model_dump_json(),
                    "processes": accelerator.num_processes,
                    "instructor": instructor.state_dict(),
                    "before": (before, fake_before),
                    "after": (state.student.state_dict(), state.fake.state_dict()),
                    "average": state.averages[0].module.state_dict(),
                },
                out / name,
            )
        accelerator.wait_for_everyone()
    finish(accelerator)
