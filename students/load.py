"""`load(source)`: weights somebody has become a `Student`."""

from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

import instructors.load
from instil.base.checkpoint import read_tensors
from instil.base.config import Config, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir, is_file, read_json
from instructors.nvidia import pickles
from students.coupling_flow import CouplingFlow
from students.export import ADAPTERS, LEVELS
from students.few_step import FewStep
from students.gan.generator import GAN, make
from students.gan.stylegan2 import StyleGAN2
from students.one_step import OneStep
from students.own import load_denoiser
from students.pretrained import CONFIG, Pretrained, build, load_weights, match
from students.source import Source
from students.student import Student

ZOO = Path(str(files("students") / "zoo"))
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (StyleGAN2, CouplingFlow, GAN)}


class Read(Config):
    """`student.json` of an exported student.

    Attributes:
        sigmas: Noise levels that the denoiser is read at, falling.
        instructor: Factory of the denoiser, where that is of the user's own code.
    """

    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=1000)]
    instructor: str | None = None


def zoo() -> list[str]:
    """Names of the embedded students."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{CONFIG}"))


def load(source: Source) -> Student:
    """Load a generator, all of its weights or an error, in eval mode.

    Raises:
        InstilError: Nothing there, the file or its weights are not this generator's, a value is not
            finite, or the factory cannot make it.
    """
    path = _locate(source)
    if is_dir(path):
        return _load_folder(path, source.factory)
    student, tensors = read(source, path)
    module = core(student)
    load_weights(module, fitted(tensors, module, source), source.weights)
    return student.eval()


def read(source: Source, path: Path) -> tuple[Student, dict[str, Tensor]]:
    """A generator with its initial weights, and the tensors of the file that should replace them.

    Raises:
        InstilError: As in `load`, but for names and shapes, which are not compared.
    """
    if path.suffix == ".pkl" and source.factory is None:
        node = generator_node(path, source.key)
        arguments, tensors = pickles.arguments(node), pickles.state_dict(node)
        return build(lambda: StyleGAN2.from_original(arguments), tensors, str(path)), tensors
    tensors = read_file(path, source.key)
    if source.factory is None:
        raise InstilError(
            f"{source.weights}: holds tensors alone; give factory=package.module:callable, which "
            "makes the network they are of"
        )
    made = make(source.factory, source.arguments)
    if isinstance(made, Student):
        return made, tensors
    settings = source.model_dump(include={"factory", "arguments", "latent", "classes", "labels"})
    return GAN(**settings, range=source.range), tensors


def inspect(source: Source) -> dict[str, Any]:
    """What a file holds beside what its generator expects; nothing needs to fit.

    Returns:
        `kind`, `shape`, `classes`, `latent` and `parameters` of the generator, and the names of
        `match`; of a file of tensors without a factory, `tensors` alone: name and shape of each.

    Raises:
        InstilError: The file cannot be read, or the generator cannot be made.
    """
    path = _locate(source)
    if is_dir(path):
        student = _load_folder(path, source.factory)
        tensors = core(student).state_dict()
    elif source.factory is None and path.suffix != ".pkl":
        tensors = read_file(path, source.key)
        return {"tensors": [f"{name} {tuple(value.shape)}" for name, value in tensors.items()]}
    else:
        student, tensors = read(source, path)
    student.eval()
    module = core(student)
    found = match(fitted(tensors, module, source), module.state_dict())
    latent = student.prior(Draws.of_range(0, 0, 0, 1))
    return {
        "kind": type(student).__name__,
        "shape": str(student.shape),
        "classes": student.classes,
        "latent": " + ".join(str(tuple(part.shape[1:])) for part in latent),
        "parameters": sum(p.numel() for p in student.parameters()),
        **asdict(found),
    }


def core(student: Student) -> nn.Module:
    """The module whose names a user's file has."""
    return student.core() if isinstance(student, Pretrained) else student


def read_file(path: Path, key: str | None) -> dict[str, Tensor]:
    """The tensors of a weight file, by name; nothing in it is run.

    Raises:
        InstilError: There is none, it is of no known kind, or holds other things than tensors.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix == ".pkl":
        return pickles.state_dict(generator_node(path, key))
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise InstilError(
            f"{path}: expected a folder, a .safetensors, .pt, .pth, .bin or .pkl file, or an "
            f"embedded name ({', '.join(zoo())})"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InstilError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # torch raises half a dozen kinds for what is not plain tensors
        reason = " ".join(str(error).split())[:200]
        raise InstilError(
            f"{path}: not a file of plain tensors, so nothing in it was run ({reason}); save the "
            "network's state_dict()"
        ) from None
    if key is not None and isinstance(content, Mapping):
        if key not in content:
            raise InstilError(f"{path}: holds no {key}, but {', '.join(map(str, content))}")
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        inside = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise InstilError(f"{path}: expected tensors by name, found {inside}; set key")
    return dict(content)


def generator_node(path: Path, key: str | None) -> pickles.Node:
    """The generator in a StyleGAN2(-ADA) pickle.

    Raises:
        InstilError: The file is refused, or holds no generator under that key.
    """
    content, key = pickles.read(path), key or "G_ema"
    node = content.get(key) if isinstance(content, dict) else content
    if not isinstance(node, pickles.Node):
        names = ", ".join(map(str, content)) if isinstance(content, dict) else "nothing by name"
        raise InstilError(f"{path}: holds no {key}, but {names}; set key")
    if node.class_name != "Generator":
        raise InstilError(f"{path}: holds a {node.class_name}, expected a Generator")
    return node


def fitted(tensors: Mapping[str, Tensor], module: nn.Module, source: Source) -> dict[str, Tensor]:
    """The tensors to load: of the module's number types, without what the user ignores.

    Raises:
        InstilError: A name to ignore is in neither.
    """
    own = module.state_dict()
    for pattern in source.ignore:
        if not any(fnmatch(name, pattern) for name in (*tensors, *own)):
            raise InstilError(f"ignore: no tensor is called {pattern}, in the file or the network")

    def ignored(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in source.ignore)

    kept = {name: value for name, value in own.items() if ignored(name)}
    for name, value in tensors.items():
        if not ignored(name):
            floats = name in own and value.is_floating_point() and own[name].is_floating_point()
            kept[name] = value.to(own[name].dtype) if floats else value
    return kept


def _locate(source: Source) -> Path:
    here = is_file(source.weights) or is_dir(source.weights)
    return ZOO / source.weights if not here and source.weights in zoo() else Path(source.weights)


def _load_folder(folder: Path, factory: str | None) -> Student:
    """A student in the format of `Pretrained`, or a pipeline that a run exported."""
    if (folder / ADAPTERS).exists():
        raise InstilError(
            f"{folder}: holds adapters alone; its README.md says how the pipeline of their "
            "instructor loads them"
        )
    if (folder / LEVELS).exists():
        read = validate(Read, read_json(folder / LEVELS))
        if read.instructor:
            denoiser = load_denoiser(folder, factory, read.instructor)
        else:
            denoiser = instructors.load.load(str(folder)).denoiser
        first, *others = read.sigmas
        first = min(first, denoiser.sigma_max)  # which a schedule's float32 may have rounded down
        student = FewStep(denoiser, [first, *others]) if others else OneStep(denoiser, first)
        return student.eval()
    if not (folder / CONFIG).exists():
        raise InstilError(f"{folder}: holds no {CONFIG}, so it is no student")
    config = read_json(folder / CONFIG)
    kind = KINDS.get(str(config.get("student")))
    if kind is None:
        raise InstilError(f"{folder / CONFIG}: does not name a student, one of {', '.join(KINDS)}")
    if kind is not GAN:
        return kind.from_pretrained(folder)
    if factory is None:
        raise InstilError(
            f"{folder}: made by {config.get('factory')}; if you trust that code, give it as "
            f"factory={config.get('factory')}"
        )
    return GAN.from_pretrained(folder, factory=factory)
