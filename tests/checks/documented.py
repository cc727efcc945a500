"""Types every command of the documentation, as a new user would, and says which ended well.

    python -m tests.checks.documented [--pages README.md,docs/eval/transfer.md] [--forked]

Commands are those of code blocks and of tables. They run in a copy of the checkout, page by page in
the order in which they stand, with little in place of long: few updates, few samples. What a reader
must bring (images, a generator, an autoencoder) is made first. What needs the network or a large
model is planned with `--dry-run` where its shapes are noted, and left out with a reason otherwise.

Most of the time goes into imports. With `--forked` they are made once: what a shell would start as
`python -m MODULE`, alone or under `accelerate launch` or `launch.sh`, is forked from this process.
"""

import argparse
import multiprocessing
import os
import re
import resource
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Rows, command
from instil.base.checkpoint import write_tensors
from instil.base.data import Images, load
from instil.base.runs.monitor import note
from tests.checks.processes import warm

ROOT = Path(__file__).parents[2]
OPENERS = ("python -m", "accelerate launch", "./launch.sh", "NUM_PROCESSES=")
OPTIONS: dict[str, dict[str, Any]] = {
    "--pages": {"default": "", "help": "some of them, with commas; all if left out"},
    "--limit": {"type": float, "default": 600.0, "help": "seconds of a command [%(default)s]"},
    "--forked": {"action": "store_true", "help": "import once; not quite as a user would"},
}
# What a reader brings, and what stands for it; longer words first.
STAND_INS = {
    "python -m eval fid --images DIR --reference DIR": "python -m eval fid --images mine "
    "--reference yours --extractor digits",
    "--instructor SOURCE --target DIR": "--instructor digits-0-4 --target mine",
    "--autoencoder DIR": "--autoencoder vae",
    "--target DIR": "--target mine",
    "--source DIR": "--source yours",
    "--data DIR": "--data mine",
    "path/or/hub-id": "digits",
    "path/to/vae": "vae",
    "SOURCE": "digits",
    "FOLDER": "digits",
    "RECIPE": "digits",
}
SHORT_DISTILLATION = (
    "train.steps=4 fake.warmup=2 evaluation.samples=100 evaluation.quick_samples=100 "
    "evaluation.patience=null evaluation.seeds=1 evaluation.instructor_steps=4 train.precision=no"
)
# What is appended, by what a command contains; the first that fits.
SHORTER = {
    "--dry-run": "",
    "sd15 conditioning": "--dry-run",
    "sdxl conditioning": "--dry-run",
    "sd3 conditioning": "--dry-run",
    "cifar10-ddpm": "--dry-run",
    "FLUX": "--dry-run",
    "-m distill": SHORT_DISTILLATION,
    "launch.sh": SHORT_DISTILLATION,
    "instructors train": "steps=4",
    "instructors transfer": "steps=4",
    "eval transfer": "--samples 40 steps=4",
    "eval preflight": "steps=4",
    "--folds 1": "--samples 100 --draws 1",
    "eval horizon": "steps=4 --samples 100 --draws 1",
    "students train": "steps=4",
}
LEFT_OUT = {
    "launch.sh test": "the tests themselves",
    ".ci/run": "the tests themselves",
    "wget": "a download",
    "hf download": "a download",
    ".pkl": "a download",
    "-edm-uncond": "a download",
    "imagenet64-edm": "a download",
    "cifar10-gan": "a download",
    "google/": "a download",
    "digits_flow": "weights that are not shipped",
    "instil distill recipe.yaml": "what tests run",
    "facebook/": "a download",
    "PixArt-alpha/": "a download",
    "Efficient-Large-Model/": "a download",
    "--model ID": "a download",
    "--images samples/": "a download",
    "cifar10-train": "a download",
    "cifar10:test": "a download",
    "benchmarks": "hours",
}
# Not linted: it stands for code of a reader's own, inside a checkout that is.
GENERATOR = """# ruff: noqa
import torch
from torch import nn


class Generator(nn.Module):
    def __init__(self, z_dim):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, 10
        self.layers = nn.Linear(z_dim + 10, 64)

    def forward(self, z, labels):
        one_hot = nn.functional.one_hot(labels, 10).to(z)
        return self.layers(torch.cat([z, one_hot], 1)).tanh().view(-1, 1, 8, 8)
"""


def commands(page: Path) -> Iterator[str]:
    """Of a page's code blocks and tables, in order."""
    text = page.read_text()
    block = False
    lines = iter(text.replace("\\\n", " ").splitlines())
    for line in lines:
        if line.startswith("```"):
            block = line in ("```bash", "```sh")
        elif block and line.strip():
            yield re.sub(r"\s+#.*", "", line).strip()
        elif line.startswith("|"):
            spans = re.findall(r"`([^`]+)`", line)
            yield from (
                span
                for span in spans
                if span.startswith(OPENERS) and not re.search(r"…|\\\||\[key", span)
            )


def shortened(line: str) -> str:
    """The command with stand-ins in place of what a reader brings, and little work."""
    for word, other in STAND_INS.items():
        line = re.sub(rf"(?<![\w./-]){re.escape(word)}(?![\w./-])", other, line)
    return f"{line} {next((more for part, more in SHORTER.items() if part in line), '')}".strip()


def left_out(line: str) -> str | None:
    """Why a command is not typed; None if it is."""
    return next((why for part, why in LEFT_OUT.items() if part in line), None)


def bring(folder: Path) -> None:
    """Make what a reader has: images, archives of them, an autoencoder, a generator."""
    from diffusers import AutoencoderKL

    images = load("digits:5-9")
    for number, name in enumerate(("photos", "mine", "negative", "yours", "others", "unseen")):
        _save(images, range(50 * number, 50 * number + 50), folder / name, name == "negative")
    for name in ("photos", "others"):
        shutil.make_archive(str(folder / name), "zip", folder / name)
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae: Any = AutoencoderKL(
        1, 1, **blocks, block_out_channels=(8,), latent_channels=2, norm_num_groups=4
    )
    vae.save_pretrained(folder / "vae")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "networks.py").write_text(GENERATOR)
    weights = {"layers.weight": 0.2 * torch.randn(64, 138), "layers.bias": torch.zeros(64)}
    write_tensors(folder / "generator.safetensors", weights)
    (folder / "prompts.txt").write_text("a fox\ntwo owls\n")


def _save(images: Images, rows: range, folder: Path, inverted: bool) -> None:
    from PIL import Image

    for row in rows:
        pixels = images.pixels[row, 0].numpy()
        label = "all" if images.labels is None else images.classes[int(images.labels[row])]
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - pixels if inverted else pixels).save(folder / label / f"{row}.png")


def run(arguments: argparse.Namespace) -> tuple[Rows, dict[str, Any]]:
    """Type them all."""
    pages = arguments.pages.split(",") if arguments.pages else [*_pages()]
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkout"
        hidden = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, folder, ignore=hidden)
        bring(folder)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,  # without one, launch.sh would make an environment
            "PYTHONPATH": str(folder),
            "MPLBACKEND": "agg",
        }
        if arguments.forked:
            _warm()
        for page in pages:
            for line in commands(ROOT / page):
                record: dict[str, Any] = {"page": page, "command": line, "left_out": left_out(line)}
                if record["left_out"] is None:
                    typed = shortened(line)
                    module = words(typed) if arguments.forked else None
                    began = _processor_seconds()
                    if module:
                        code, said = _forked(module, folder, environment, arguments.limit)
                    else:
                        code, said = _typed(typed, folder, environment, arguments.limit)
                    seconds = _processor_seconds() - began
                    record |= {"typed": typed, "rc": code, "processor_seconds": seconds}
                    note(f"{page}: {code} after {seconds:.0f} s of a processor: {typed}")
                    if code:
                        record["said"] = said[-2000:]
                        note(said[-600:])
                records.append(record)
    rows = []
    for page in pages:
        mine = [each for each in records if each["page"] == page]
        typed = [each for each in mine if each["left_out"] is None]
        well = sum(each["rc"] == 0 for each in typed)
        reasons = sorted({each["left_out"] for each in mine if each["left_out"]})
        seconds = sum(each["processor_seconds"] for each in typed)
        rows.append(
            {
                "page": page,
                "commands": str(len(mine)),
                "typed": str(len(typed)),
                "ended well": str(well),
                "processor seconds": f"{seconds:.0f}",
                "not typed for": ", ".join(reasons),
            }
        )
    return [each for each in rows if each["commands"] != "0"], {"commands": records}


def _pages() -> Iterator[str]:
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ):
        yield str(path.relative_to(ROOT))


def words(line: str) -> list[str] | None:
    """Module and arguments of a command that runs one of ours as one process; None of others."""
    parts = shlex.split(line)
    if parts[0] == "./launch.sh":
        return ["distill", *parts[1:]]
    started = (["python", "-m"], ["accelerate", "launch", "-m"])
    return next((parts[len(each) :] for each in started if parts[: len(each)] == each), None)


def _warm() -> None:
    """Import what most commands import, late or not."""
    import matplotlib.pyplot  # noqa: F401
    import torch_fidelity  # noqa: F401
    from diffusers import ConsistencyModelPipeline  # noqa: F401

    warm(["digits"])


def _forked(
    module: list[str], folder: Path, environment: dict[str, str], limit: float
) -> tuple[int, str]:
    log = folder.parent / "log"
    log.write_text("")
    child = multiprocessing.get_context("fork").Process(
        target=_carry_out, args=(module, folder, environment, log)
    )
    child.start()
    child.join(limit)
    if child.exitcode is None:
        child.kill()
        child.join()
        return 124, f"more than {limit:g} s"
    return child.exitcode, log.read_text()


def _carry_out(module: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """What a forked process does."""
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["", *module[1:]]
    try:
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _typed(line: str, folder: Path, environment: dict[str, str], limit: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            line,
            shell=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return 124, f"more than {limit:g} s"
    return done.returncode, done.stdout + done.stderr


def _processor_seconds() -> float:
    """Of the processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(command(run, "Every command of the documentation", OPTIONS))
