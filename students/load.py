"""`load(source)`: weights somebody has become a `Student`."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

import instructors.load
from instil.base.checkpoint import read_tensors
from instil.base.config import Config, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError, first_of
from instil.base.runs.monitor import note
from instil.base.untrusted import is_dir, is_file, read_json
from instructors.denoiser import Denoiser
from instructors.nvidia import pickles
from students.build import build
from students.coupling_flow import CouplingFlow
from students.export import ADAPTERS, DENOISER, LEVELS
from students.few_step import FewStep
from students.files import read_sets
from students.gan.factory import make
from students.gan.generator import GAN
from students.gan.stylegan2 import StyleGAN2
from students.one_step import OneStep
from students.pretrained import CONFIG, Pretrained
from students.source import Call, Source
from students.student import Student
from students.weights import Reading, find_weights, load_weights, match

ZOO = Path(str(files("students") / "zoo"))
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (StyleGAN2, CouplingFlow, GAN)}


class Read(Config):
    """`student.json`: how a denoiser is read.

    Attributes:
        sigmas: Falling noise levels.
        factory: The user's code that makes a network no folder describes.
        side: Height and width of a sample, where the network's configuration names none.
    """

    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=1000)]
    factory: str | None = None
    side: PositiveInt | None = None


def zoo() -> list[str]:
    """Names of the embedded students."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{CONFIG}"))


def load(source: Source) -> Student:
    """Load a generator, all of its weights or an error, in eval mode.

    Raises:
        InstilError: There is no such file, its tensors do not fit the generator, a value is not
            finite, or the factory fails.
    """
    path = _locate(source)
    if is_dir(path):
        return load_folder(path, source.factory)
    student, reading, tensors = _read(source, path)
    load_weights(core(student), tensors, source.weights)
    if reading.place not in ("", source.key) or reading.beside:
        beside = f", without {len(reading.beside)} others" if reading.beside else ""
        note(f"{source.weights}: read as key={reading.place!r}{beside}")
    return student.eval()


def inspect(source: Source) -> dict[str, Any]:
    """Compare a file's tensors with those its generator expects; nothing needs to fit.

    Returns:
        `kind`, `shape`, `classes`, `latent` and `parameters` of the generator, `call` of a network
        of the user's own, `place` in the file, and the names of `match`; of a file of tensors
        without a factory, `tensors` alone: name and shape of each.

    Raises:
        InstilError: The file cannot be read, or the generator cannot be made.
    """
    path = _locate(source)
    facts: dict[str, Any] = {}
    if is_dir(path):
        student = load_folder(path, source.factory)
        tensors: Mapping[str, Tensor] = core(student).state_dict()
    elif source.factory is None and not _is_original(path):
        return {
            "tensors": [
                f"{f'{place}.{name}'.lstrip('.')} {tuple(value.shape)}"
                for place, held in read_file(path).items()
                for name, value in held.items()
            ]
        }
    else:
        student, reading, tensors = _read(source, path)
        facts["place"] = reading.place
    student.eval()
    if isinstance(student, GAN):
        facts["call"] = str(student.how.model_dump(exclude_none=True))
    latent = student.prior(Draws.of_range(0, 0, 0, 1))
    return {
        "kind": type(student).__name__,
        "shape": str(student.shape),
        "classes": student.classes,
        "latent": " + ".join(str(tuple(part.shape[1:])) for part in latent),
        "parameters": sum(p.numel() for p in student.parameters()),
        **facts,
        **match(tensors, core(student).state_dict()),
    }


def core(student: Student) -> nn.Module:
    """The module whose names a user's file has."""
    return student.core() if isinstance(student, Pretrained) else student


def read_file(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a weight file, by the keys that lead to them and by name.

    Raises:
        InstilError: There is no file, or it is of no known kind.
    """
    if not is_file(path):
        raise InstilError(
            f"{path}: expected a folder, a .safetensors file, one of torch.save, a StyleGAN2 .pkl, "
            f"or an embedded name ({', '.join(zoo())})"
        )
    sets, skipped = read_sets(path)
    if skipped:
        note(f"{path}: left aside, unread: {first_of(skipped)}")
    return sets


def _read(source: Source, path: Path) -> tuple[Student, Reading, dict[str, Tensor]]:
    """A generator with its initial weights, where its weights lie in the file, and the weights."""
    if source.factory is None and _is_original(path):
        node = generator_node(path, source.key)
        arguments, tensors = pickles.arguments(node), pickles.state_dict(node)
        student: Student = build(lambda: StyleGAN2.from_original(arguments), tensors, str(path))
        sets, key = {"": tensors}, None
    else:
        sets, key = read_file(path), source.key
        if key is None and _is_original(path) and "G_ema" in sets:
            key = "G_ema"
        if source.factory is None:
            raise InstilError(
                f"{source.weights}: holds tensors alone; give factory=package.module:callable, "
                "which makes the network they are of"
            )
        student = _made(source, source.factory)
    optional = student.unsaved if isinstance(student, GAN) else ()
    return student, *find_weights(sets, core(student), str(path), key, source.ignore, optional)


def _made(source: Source, factory: str) -> Student:
    """Call a factory; a network that is no student is wrapped as one."""
    network = make(factory, source.arguments)
    if isinstance(network, Student):
        return network
    how = source.model_dump(mode="json", include=set(Call.model_fields))
    return GAN(factory, source.arguments, **how)


def _is_original(path: Path) -> bool:
    return path.suffix == ".pkl" and is_file(path)


def generator_node(path: Path, key: str | None) -> pickles.Node:
    """The generator in a StyleGAN2 pickle.

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


def _locate(source: Source) -> Path:
    here = is_file(source.weights) or is_dir(source.weights)
    return ZOO / source.weights if not here and source.weights in zoo() else Path(source.weights)


def load_folder(folder: Path, factory: str | None) -> Student:
    """Load a folder in the format of `Pretrained`, or a pipeline that a run exported.

    Raises:
        InstilError: It is neither, or names code that `factory` does not.
    """
    if (folder / ADAPTERS).exists():
        raise InstilError(
            f"{folder}: holds adapters alone; its README.md says how the pipeline of their "
            "instructor loads them"
        )
    if (folder / LEVELS).exists():
        reading = validate(Read, read_json(folder / LEVELS))
        if (folder / DENOISER).exists():
            denoiser = _own_denoiser(folder, reading.factory, factory)
        else:
            denoiser = instructors.load.load(str(folder), reading.side).denoiser
        first, *others = reading.sigmas
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


def _own_denoiser(folder: Path, named: str | None, factory: str | None) -> Denoiser:
    """The denoiser of a network that the user's factory makes, with a folder's weights."""
    if factory is None:
        raise InstilError(
            f"{folder}: made by {named or 'code of your own'}; if you trust that code, give it as "
            f"factory={named or 'package.module:callable'}"
        )
    denoiser = instructors.load.load(factory).denoiser
    load_weights(denoiser, read_tensors(folder / DENOISER), str(folder / DENOISER))
    return denoiser
