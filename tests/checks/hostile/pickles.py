"""Pickles of EDM, EDM2 and StyleGAN2, mutated or crafted, as `convert` reads them."""

import functools
import io
import json
import pickletools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import students.load
from instructors.nvidia.convert import convert
from students.gan.run import save
from students.source import Source
from tests.checks.hostile.crafted import CORPUS, dumped, persistent
from tests.checks.hostile.mutations import damage, warp

GOLDEN = Path(__file__).parents[2] / "golden"
KINDS = ("edm", "edm2", "stylegan2")


@functools.cache
def described(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Class, arguments and tensors of a tiny network like one of the published ones."""
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arguments = json.loads(meta["arguments"])
    if path.parent.name == "stylegan2":
        tensors = {name[6:]: kept[name] for name in kept if name.startswith("state/")}
        return "Generator", arguments, tensors
    torch.manual_seed(0)
    tensors = {
        name: kept["buffer.u"] if name == "u" else torch.randn(tuple(shape)) / 8
        for name, shape in json.loads(meta["shapes"]).items()
    }
    taps = torch.tensor(arguments.get("resample_filter", [1.0, 1.0]), dtype=torch.float32)
    for name in tensors:
        if name.endswith("resample_filter"):
            tensors[name] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    return meta["class_name"], arguments, tensors


def network(class_name: str, arguments: Any, tensors: dict[str, Tensor], **state: Any) -> Any:
    """A network as NVIDIA's code pickles it."""
    own: dict[str, Tensor] = {}
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        else:
            own[first] = tensor
    modules = {name: network("Module", {}, inside) for name, inside in children.items()}
    members = {"_parameters": own, "_modules": modules, "_buffers": {}}
    recorded = {"_init_args": (), "_init_kwargs": arguments, "training": False}
    return persistent(class_name, members | recorded | state)


def content(path: Path, arguments: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a whole file holds, with other arguments or tensors than its own."""
    kind = path.parent.name
    made = network(described(path)[0], arguments, tensors)
    if kind == "stylegan2":
        return {"G": None, "D": None, "G_ema": made, "training_set_kwargs": {"path": "x"}}
    if kind == "edm":
        return {"ema": made, "loss_fn": None, "dataset_kwargs": {"path": "x"}}
    numbers = {"scale": np.array([2, 1, 0.5, 3], "f4"), "bias": np.array([0, 1, 2, 3], "f4")}
    latent = described(path)[1]["img_channels"] == 4
    name = "StabilityVAEEncoder" if latent else "StandardRGBEncoder"
    return {"encoder": persistent(name, numbers if latent else {}), "ema": made}


@functools.cache
def whole(path: Path, protocol: int) -> tuple[bytes, tuple[int, ...]]:
    """A sound file, and where its opcodes begin."""
    _, arguments, tensors = described(path)
    made = dumped(content(path, arguments, tensors), protocol)
    return made, tuple(place or 0 for _, _, place in pickletools.genops(made))


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """A pickle and its conversion."""
    dice = Random(f"{start}/pickles/{number}")
    sound = dice.choice(sorted((GOLDEN / dice.choice(KINDS)).glob("*.safetensors")))
    protocol, way = dice.choice((2, 3, 4, 5)), dice.random()
    name, trace = "network.pkl", folder / "trace"
    if way < 0.15:
        made = damage(whole(sound, protocol)[0], dice)
    elif way < 0.5:
        made = _at_opcodes(*whole(sound, protocol), dice)
    elif way < 0.65:
        _, arguments, tensors = described(sound)
        made = _dumped(content(sound, warp(arguments, dice), tensors), protocol)
    elif way < 0.75:
        _, arguments, tensors = described(sound)
        made = dumped(content(sound, arguments, _other(tensors, dice)), protocol)
    elif way < 0.95:
        made = CORPUS[dice.choice(list(CORPUS))](str(trace))
        if dice.random() < 0.3:
            made = damage(made, dice)
    else:
        name = f"network.{dice.choice(('pt', 'pth', 'bin'))}"
        made = _of_torch(described(sound)[2], str(trace), dice)
    (folder / name).write_bytes(made)
    images = name == "network.pkl" and sound.parent.name != "stylegan2"
    reader = _edm if images else _stylegan2 if name == "network.pkl" else _tensors

    def read() -> None:
        try:
            reader(folder / name, folder / "out")
        finally:
            assert not trace.exists(), "something in the file was run"

    return read


def _edm(path: Path, out: Path) -> None:
    convert(path, out)
    assert (out / "unet").is_dir(), "not all was written"


def _stylegan2(path: Path, out: Path) -> None:
    student: Any = students.load.load(Source(weights=str(path)))
    save(student, out, "a student")


def _tensors(path: Path, out: Path) -> None:
    students.load.read_file(path)


def _at_opcodes(content: bytes, places: tuple[int, ...], dice: Random) -> bytes:
    """Another opcode, argument or length here and there; numbers stay what they are."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = min(dice.choice(places) + dice.choice((0, 0, 1, 2, 5)), len(changed) - 1)
        other = changed[dice.choice(places)]
        changed[place] = dice.choice((other, other, dice.randrange(256), 0xFF, 0))
    return bytes(changed)


def _dumped(value: Any, protocol: int) -> bytes:
    try:
        return dumped(value, protocol)
    except UnicodeEncodeError:  # a lone surrogate, which pickles do not have
        return b""


def _other(tensors: dict[str, Tensor], dice: Random) -> dict[str, Tensor]:
    """A network's tensors, one of which is not what it should be."""
    changed: dict[str, Any] = dict(tensors)
    name = dice.choice(list(changed))
    value = changed[name]
    nonsense = (
        value.double(), value.to(torch.int64), value.bool(), value.half(), value.new_empty(0),
        value * float("nan"), value[None], value.flatten(), value.new_zeros(1).expand(64, 64), 3,
        None, "x",
    )  # fmt: skip
    changed[name] = dice.choice(nonsense)
    if dice.random() < 0.3:
        del changed[dice.choice(list(changed))]
    if dice.random() < 0.2:
        changed[f"{name}.more"] = value
    return changed


def _of_torch(tensors: dict[str, Tensor], trace: str, dice: Random) -> bytes:
    """What `torch.save` writes, damaged; or code, where it would be."""
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=dice.random() < 0.6)
    if dice.random() < 0.2:
        return CORPUS[dice.choice(list(CORPUS))](trace)
    return damage(file.getvalue(), dice)
