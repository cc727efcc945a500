"""Safetensors files whose headers lie, at each place that reads one."""

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler, UNet2DModel

import eval.quality.features
import instructors.load
import students.load
from instil.base import checkpoint
from students.gan.run import save
from students.gan.stylegan2 import StyleGAN2
from students.source import Source
from tests.checks.hostile.mutations import damage, json_bytes
from tests.checks.hostile.sandbox import scratch

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "Q8",
    "",
    "\0",
    3,
)
HUGE = (0, -1, 1, 2**31, 2**40, 2**63, 2**64 - 1, 2**64, 10**40, 1.5, "4", None, [1])


@functools.cache
def sources() -> dict[str, Path]:
    """Small sound folders and files, by the reader they are for."""
    root = scratch()
    torch.manual_seed(0)
    network: Any = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    scheduler: Any = EDMEulerScheduler()
    pipeline: Any = ConsistencyModelPipeline(network, scheduler)
    pipeline.save_pretrained(root / "instructor")
    tiny = StyleGAN2(
        resolution=8, channels=1, z_dim=4, w_dim=4, mapping_layers=1, channel_base=16, channel_max=4
    )
    save(tiny, root / "student", "a student")
    (root / "extractor").mkdir()
    shutil.copy(eval.quality.features.EMBEDDED / "digits.safetensors", root / "extractor")
    return {
        "tensors": root / "student" / "model.safetensors",
        "instructor": root / "instructor" / "unet" / "diffusion_pytorch_model.safetensors",
        "student": root / "student" / "model.safetensors",
        "extractor": root / "extractor" / "digits.safetensors",
    }


@functools.cache
def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a sound file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def lie(path: Path, dice: Random) -> bytes:
    """A sound file with another header, or other bytes."""
    header, body = _parts(path)
    way = dice.random()
    if way < 0.25:
        return damage(path.read_bytes(), dice)
    if way < 0.35:  # numbers alone: a network of nonsense, or of values that are not finite
        patch = dice.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", dice.randbytes(4)))
        place = 4 * dice.randrange(len(body) // 4)
        return _file(json.dumps(header).encode(), body[:place] + patch + body[place + 4 :], dice)
    if way < 0.6:
        return _file(json_bytes(header, dice), body, dice)
    changed = json.loads(json.dumps(header))
    names = [name for name in changed if name != "__metadata__"]
    for name in dice.sample(names, min(len(names), dice.randint(1, 3))):
        _lie_about(changed, name, len(body), dice)
    text = json.dumps(changed)
    if dice.random() < 0.1:  # one name twice
        text = text[:-1] + f', "{names[0]}": {json.dumps(changed.get(names[0], {}))}}}'
    return _file(text.encode(), body, dice)


def _lie_about(header: dict[str, Any], name: str, size: int, dice: Random) -> None:
    tensor = header[name]
    first, last = tensor["data_offsets"]
    match dice.randrange(8):
        case 0:
            tensor["dtype"] = dice.choice(DTYPES)
        case 1:
            tensor["shape"] = [dice.choice(HUGE) for _ in range(dice.choice((0, 1, 2, 4, 70)))]
        case 2:
            tensor["data_offsets"] = [dice.choice((first, *HUGE)), dice.choice((last, *HUGE))]
        case 3:  # over another's bytes
            tensor["data_offsets"] = [max(0, first - 4), max(0, last - 4)]
        case 4:
            tensor["data_offsets"] = [0, size]
        case 5:
            header[dice.choice(("", "\0", "é" * 200, "\ud800", "x" * 10_000, "\x1b[2J"))] = (
                header.pop(name)
            )
        case 6:
            header["__metadata__"] = dice.choice(
                (
                    None,
                    3,
                    [],
                    {"extractor": "{"},
                    {"extractor": "[]"},
                    {"format": "tf"},
                    {"a": 1},
                    {"extractor": "{}"},
                    {},
                    {"format": "np"},
                )
            )
        case 7:  # numbers nobody has
            header["more"] = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [size, size]}


def _file(header: bytes, body: bytes, dice: Random) -> bytes:
    length = len(header)
    if dice.random() < 0.1:
        length = dice.choice((0, 1, length - 1, length + 1, 2**31, 100_000_000, 2**63, 2**64 - 1))
    return struct.pack("<Q", length % 2**64) + header + body


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """A file that lies, and one of its readers."""
    dice = Random(f"{start}/safetensors/{number}")
    kind = dice.choice(("tensors", "tensors", "extractor", "student", "instructor"))
    sound = sources()[kind]
    if kind == "extractor" and dice.random() < 0.3:
        return _of_metadata(sound, folder, dice)
    content = lie(sound, dice)
    if kind in ("tensors", "extractor"):
        path = folder / f"{kind}.safetensors"
        path.write_bytes(content)
        if kind == "tensors":
            return lambda: checkpoint.read_tensors(path)
        return lambda: eval.quality.features.load(str(path))
    root = sound.parent if kind == "student" else sound.parents[1]
    shutil.copytree(root, folder / kind)
    (folder / kind / sound.relative_to(root)).write_bytes(content)
    where = str(folder / kind)
    if kind == "student":
        return lambda: students.load.load(Source(weights=where))
    return lambda: instructors.load.load(where)


def _of_metadata(sound: Path, folder: Path, dice: Random) -> Callable[[], Any]:
    """An extractor whose weights are whole and whose description is not."""
    header, body = _parts(sound)
    about = json.loads(header["__metadata__"]["extractor"])
    text = json_bytes(about, dice).decode("utf-8", "replace")
    content = json.dumps(header | {"__metadata__": {"extractor": text}}).encode()
    path = folder / "extractor.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + body)
    return lambda: eval.quality.features.load(str(path))
