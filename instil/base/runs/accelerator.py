"""The accelerator of a run: devices, processes, precision."""

import gc
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from instil.base.errors import InstilError
from instil.base.runs import log
from instil.base.runs.monitor import note
from instil.base.runs.trackers import check_trackers


def accelerator_for(precision: str | None, trackers: Sequence[str], root: str) -> Accelerator:
    """The accelerator of a run, with a process group that waits out long evaluations.

    Raises:
        InstilError: fp16, or an engine that does not take several networks, was asked for.
    """
    _refuse_engines()
    check_trackers(trackers)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes there have no backend
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=root,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # else gradients lie twice
        ],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise InstilError(
            f"precision {accelerator.mixed_precision}: one loss scaler cannot serve two networks "
            "whose gradients meet inside an update; use bf16 or no"
        )
    on_cpu = accelerator.device.type == "cpu" and accelerator.is_main_process
    if accelerator.mixed_precision == "bf16" and on_cpu and not bf16_is_fast():
        note(
            "precision bf16: this processor has no instructions for it (AVX512_BF16, AMX), without "
            "which it is 2 to 16 times slower than float32; leave it out"
        )
    return accelerator


def _refuse_engines() -> None:
    """Refuse what a launcher asks of accelerate and a run cannot give, before accelerate fails.

    Raises:
        InstilError: One sentence that says what to do instead.
    """
    for engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
            raise InstilError(
                f"{engine}: accelerate gives it one network with one optimizer, and a step here "
                "trains two; launch with plain data parallelism (accelerate launch --multi_gpu). A "
                "distillation that does not fit a device needs less by fake.lora, student.lora, "
                "train.checkpointing=true, train.averages_on=cpu and optimizer.bits=8, and "
                "`python -m distill RECIPE --dry-run` says how much"
            )
    asked = os.environ.get
    if asked("ACCELERATE_MIXED_PRECISION", "no") not in ("no", "bf16", "fp16"):
        raise InstilError(
            f"precision {asked('ACCELERATE_MIXED_PRECISION')}, from accelerate's configuration: "
            "expected bf16 or no"
        )
    if asked("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        raise InstilError(
            f"dynamo_backend {asked('ACCELERATE_DYNAMO_BACKEND')}, from accelerate's "
            "configuration: would compile half of an update; leave it out and set "
            "train.compile=true"
        )
    if asked("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise InstilError(
            f"gradient_accumulation_steps {asked('ACCELERATE_GRADIENT_ACCUMULATION_STEPS')}, from "
            "accelerate's configuration: leave it out and set train.accumulation, which divides "
            "train.batch"
        )
    if "MASTER_PORT" in os.environ and not _numbered():
        raise InstilError(
            "several processes were asked for and this one has no number, as when `accelerate "
            "launch --cpu` is told to start several and starts one; on CPUs start them by "
            "`torchrun --standalone --nproc_per_node N -m distill`"
        )


def _numbered() -> bool:
    """Whether a launcher told this process its number."""
    names = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
    return any(name in os.environ for name in names)


def bf16_is_fast() -> bool:
    """Whether the processor convolves in bf16 by its own instructions; without, torch is slow."""
    facts = torch.cpu.get_capabilities()
    return any(facts.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def finish(accelerator: Accelerator) -> None:
    """End trackers and the process group.

    Wrapped modules are collected first: one that outlives the process group makes gloo abort the
    process at exit (5 of 12 runs of two processes with torch 2.15).
    """
    log.keep(None)
    accelerator.free_memory()
    if dist.is_available() and dist.is_initialized():
        gc.collect()
    accelerator.end_training()
    AcceleratorState._reset_state()  # the next run of this process may have another precision
