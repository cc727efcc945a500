"""The accelerator of a run: devices, processes, precision."""

import gc
from collections.abc import Sequence
from datetime import timedelta

import torch
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


def accelerator_for(precision: str | None, trackers: Sequence[str], root: str) -> Accelerator:
    """The accelerator of a run, with a process group that waits out long evaluations.

    Raises:
        InstilError: fp16, or an engine that does not take several networks, was asked for.
    """
    accelerator = Accelerator(
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
    engine = accelerator.distributed_type.value
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):  # on a CPU, accelerate would not say so
        engine = "FSDP"
    if engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise InstilError(
            f"{engine}: accelerate gives it one network with one optimizer, and a step here trains "
            "two; launch with plain data parallelism (accelerate launch --multi_gpu). A "
            "distillation that does not fit a device needs less by fake.lora, student.lora, "
            "train.checkpointing=true, train.averages_on=cpu and optimizer.bits=8, and "
            "`python -m distill RECIPE --dry-run` says how much"
        )
    on_cpu = accelerator.device.type == "cpu" and accelerator.is_main_process
    if accelerator.mixed_precision == "bf16" and on_cpu and not bf16_is_fast():
        note(
            "precision bf16: this processor has no instructions for it (AVX512_BF16, AMX), without "
            "which it is 2 to 16 times slower than float32; leave it out"
        )
    return accelerator


def bf16_is_fast() -> bool:
    """Whether the processor convolves in bf16 by its own instructions; without, torch is slow."""
    facts = torch.cpu.get_capabilities()
    return any(facts.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def finish(accelerator: Accelerator) -> None:
    """End trackers and the process group, in the order gloo survives.

    A wrapped module that outlives the process group aborts the process at exit: "terminate called
    without an active exception", in 5 of 12 runs of two processes with torch 2.15, against none.
    """
    log.keep(None)
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    AcceleratorState._reset_state()  # the next run of this process may have another precision
