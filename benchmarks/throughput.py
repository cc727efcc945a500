"""Seconds per student update: this loop against the authors', in turn within one run.

    python -m benchmarks.throughput [--networks digits ddpmpp adm gan] [--rounds 7] [--json PATH]
    python -m benchmarks.throughput --columns compile channels_last bf16

Two columns, never mixed. *Algorithm*: the same kernels on both sides, so that 9 forward-equivalents
against 7 bound the ratio by 1.29. *As shipped*: this loop with the precision, layout and compiler
keys a recipe may set, against the authors' defaults. The row of the GAN has a column of its own:
an update of the shipped refinement of the digits GAN against an adversarial one of the same batch.

Asked for by `--columns`: this loop with one key set against the same loop without it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.authors_loop import AuthorsLoop
from benchmarks.harness import Rows, command, paired
from distill.__main__ import RECIPES
from distill.build import build, full_copy, load_instructor
from distill.divergences import IKL
from distill.recipe import FakeScore, Method, Recipe, Train
from distill.trainer import State, train
from instil.base import data
from instil.base.config import load_recipe
from instil.base.levels import LogNormal
from instil.base.optimizer import Adam
from instil.base.runs.accelerator import bf16_is_fast
from instil.base.runs.monitor import note
from instructors.adapters.karras import Karras
from instructors.denoiser import Denoiser
from instructors.load import load
from students.__main__ import RECIPES as STUDENT_RECIPES
from students.gan import train as gan
from students.one_step import OneStep


def digits() -> tuple[Denoiser, int]:
    """The embedded 8x8 instructor."""
    return load("digits").denoiser, 128


def ddpmpp() -> tuple[Denoiser, int]:
    """32x32, three levels of one width with attention in the middle: the shape of DDPM++."""
    from diffusers import UNet2DModel

    network: Any = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        resnet_time_scale_shift="scale_shift",
    )
    return Karras(network, (3, 32, 32)), 8


def adm() -> tuple[Denoiser, int]:
    """64x64, four levels of growing width with residual resampling: the shape of ADM."""
    from diffusers import UNet2DModel

    network: Any = UNet2DModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", *3 * ("AttnDownBlock2D",)),
        up_block_types=(*3 * ("AttnUpBlock2D",), "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=32,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=10,
    )
    return Karras(network, (3, 64, 64), classes=10), 4


NETWORKS = {"digits": digits, "ddpmpp": ddpmpp, "adm": adm}


def ours(instructor: Denoiser, batch: int, shipped: dict[str, Any]) -> Any:
    """An update of this loop on the paper's method, as a function."""
    adam = Adam(lr=1e-5)
    method = Method(
        divergence=IKL(),
        levels=LogNormal(),
        optimizer=adam,
        fake=FakeScore(optimizer=adam),
        train=Train(steps=10**9, batch=batch, averages=(500_000.0,), **shipped),
    )
    state = State.fresh(OneStep(full_copy(instructor), 1.0), full_copy(instructor), method)
    accelerator = Accelerator(mixed_precision=method.train.precision or "no")
    reports = train(state, instructor, method, accelerator)
    return lambda: next(reports)


def refinement() -> tuple[Any, Any]:
    """An update of the shipped refinement of the digits GAN, and one of the GAN's own training."""
    accelerator = Accelerator(mixed_precision="no")
    words = ["fake.warmup=0", f"train.steps={10**9}"]
    recipe = load_recipe(Recipe, "digits-gan", words, RECIPES)
    instructor = load_instructor(recipe, accelerator.device)
    state = build(recipe, instructor)
    refined = train(state, instructor.denoiser, recipe, accelerator, instructor.prior)
    words = [f"batch={recipe.train.batch}", f"steps={10**9}"]
    own = load_recipe(gan.TrainRecipe, "digits", words, STUDENT_RECIPES)
    images = data.load(own.data)
    fresh = gan.fresh(own, images, accelerator.device)
    adversarial = gan.train(fresh, images, own, accelerator)
    return lambda: next(refined), lambda: next(adversarial)


KEYS: dict[str, dict[str, Any]] = {
    "compile": {"compile": True},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
}
COLUMNS = ("algorithm", "shipped")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What a recipe would set on this machine; channels-last gains nothing on a CPU (measured).
SHIPPED = {
    "precision": "bf16" if torch.cuda.is_available() or bf16_is_fast() else "no",
    "compile": True,
    "channels_last": torch.cuda.is_available(),
}


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Time both loops on each network, in both columns."""
    torch.set_num_threads(arguments.threads)
    rows, facts = [], {}
    for name in arguments.networks:
        facts[name] = {}
        for column, loops in _loops(name, arguments.columns).items():
            note(f"{name}, {column}")
            this, that = (_synchronised(each) for each in loops())
            mine, other, ratio = paired(this, that, arguments.rounds, arguments.calls)
            facts[name][column] = {"ours": mine, "theirs": other, "ratio": ratio}
            rows.append(
                {
                    "network": name,
                    "column": column,
                    "ours": f"{1000 * mine:.0f} ms",
                    "theirs": f"{1000 * other:.0f} ms",
                    "theirs / ours": f"{ratio:.2f}",
                }
            )
            AcceleratorState._reset_state(reset_partial_state=True)
    return rows, facts


def _loops(name: str, columns: Sequence[str]) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """What makes the two updates of each column: this loop's, and what it is held against."""
    if name == "gan":
        return {"refinement": refinement}

    def both(column: str) -> tuple[Any, Any]:
        instructor, batch = NETWORKS[name]()
        instructor.eval().requires_grad_(False).to(DEVICE)
        # Copies, since only one side is compiled, or has another layout.
        alone = [full_copy(instructor).requires_grad_(False) for _ in range(2)]
        if column in KEYS:
            return ours(alone[0], batch, KEYS[column]), ours(alone[1], batch, {})
        keys = SHIPPED if column == "shipped" else {}
        return ours(alone[0], batch, keys), AuthorsLoop(instructor, batch).update

    return {column: partial(both, column) for column in columns}


def _synchronised(update: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        update()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    names = [*NETWORKS, "gan"]
    options: dict[str, dict[str, Any]] = {
        "--networks": {"nargs": "+", "choices": names, "default": names},
        "--columns": {"nargs": "+", "choices": [*COLUMNS, *KEYS], "default": list(COLUMNS)},
        "--rounds": {"type": int, "default": 7, "help": "rounds of either loop [%(default)s]"},
        "--threads": {"type": int, "default": 1, "help": "of the processor [%(default)s]"},
        "--calls": {"type": int, "default": 3, "help": "updates per round [%(default)s]"},
    }
    sys.exit(command(run, "Seconds per student update, median of paired rounds", options))
