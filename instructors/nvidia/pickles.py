"""Reads NVIDIA's network pickles (EDM, EDM2, StyleGAN2-ADA) and executes nothing from them.

Such a file holds, per object, the source text of its class, which their own loader compiles and
runs; no check of the globals a pickle names can see into that text. Here a pickle is read as data:
its opcodes are decoded by the standard library and interpreted below, a few known globals build
tensors and containers, every other global is refused by name, and source text is dropped unread.

All sizes a file declares are held against the bytes it has before memory is taken, what a file
asks to copy again and again is counted, and a message never spells out a value that is not a number
or a name, since a small file can hold nested lists of any written length.
"""

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from instil.base.errors import InstilError

# A network of 50 million parameters takes 30 thousand; more is an attack on memory.
MOST_OPCODES = 2_000_000
# Bytes that calls may be given, by byte of the file: twice by those who write bytes as text.
MOST_COPIES = 4
MOST_ARGUMENTS = 10_000
DEEPEST_MODULE = 64

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
# What torch writes before a storage's bytes: a magic number, then the version of the format.
STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001


REFUSED = (
    "which a network checkpoint does not need, so the file was refused and nothing in it was run; "
    "if it is a published checkpoint, open an issue of this project with this line and the file's "
    "address"
)
# What decoding and building raise on bytes that are not what they declare to be.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RuntimeError)


class RefusedError(Exception):
    """The file asks for something that a checkpoint does not need."""


@dataclass
class Node:
    """An object of a class that is not loaded: a network, one of its modules, a loss.

    Attributes:
        class_name: Name of its class, without the module.
        state: Its attributes; of a torch module `_parameters`, `_buffers` and `_modules` as well.
    """

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


class Array:
    """A numpy array.

    Attributes:
        numbers: Its values in order, flat; a view of the file's bytes.
        shape: Shape of the array.
    """

    numbers: np.ndarray[Any, Any] = np.empty(0)
    shape: tuple[int, ...] = (0,)

    def fill(self, version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        """Take the state that numpy pickles."""
        if version != 1 or fortran is not False:
            raise ValueError("a numpy array in no format that is known")
        numbers = _numbers(dtype, data)
        if any(type(n) is not int for n in _of(tuple, shape)) or math.prod(shape) != len(numbers):
            raise ValueError("a numpy array of another size than it says")
        self.numbers, self.shape = numbers, shape


def read(path: Path) -> Any:
    """Read a pickle: containers, numbers, texts, tensors, and a `Node` for every other object.

    Args:
        path: The file; usually it holds a mapping of names such as `ema` or `G_ema` to networks.

    Raises:
        InstilError: No such file, it is not a whole pickle, or it asks for a global that a
            checkpoint does not need; the message names it.
    """
    with _mapped(path, "pickle of a network", REFUSED) as content:
        return interpret(content, MOST_COPIES * len(content))


def read_torch(path: Path, foreign: set[str]) -> Any:
    """Read a file of `torch.save` as data, the tensors on the CPU.

    Args:
        path: The file.
        foreign: Takes the names of globals that a checkpoint does not need; nothing is called, a
            `Node` stands for each of their objects.

    Raises:
        InstilError: It is not a whole file of `torch.save`.
    """
    with _mapped(path, "file of torch.save", "so it was not read") as content:
        if content[:2] == b"PK":
            return _read_archive(path, foreign)
        return _read_stream(content, foreign)


@contextmanager
def _mapped(path: Path, kind: str, refused: str) -> Iterator[mmap.mmap]:
    """A file's bytes; what the block raises on them becomes one sentence.

    Reading from a map never takes more memory than the file has bytes.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            yield content
    except OSError as error:
        raise InstilError(f"{path}: cannot be read ({error.strerror})") from None
    except RefusedError as refusal:
        raise InstilError(f"{path}: {refusal}, {refused}") from None
    except (*MALFORMED, zipfile.BadZipFile) as error:
        raise InstilError(f"{path}: not a whole {kind} ({error})") from None


def _read_archive(path: Path, foreign: set[str]) -> Any:
    """A zip archive: one pickle, and one uncompressed file for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {"/".join(e.filename.split("/")[1:]): e for e in archive.infolist()}
        if "constants.pkl" in members:
            raise RefusedError("it is a TorchScript program, of which the state_dict() is needed")
        order = members.get("byteorder")
        if order and (order.file_size > 6 or archive.read(order) != b"little"):
            raise RefusedError("its numbers are of a foreign byte order")
        read: dict[str, Tensor] = {}
        room = path.stat().st_size

        def storage(values: Any) -> Tensor:
            nonlocal room
            kind, key, count = _storage_id(values)
            if key not in read:
                dtype, member = STORAGES[_of(_Global, kind).name], members[f"data/{key}"]
                if member.compress_type or member.file_size != count * dtype.itemsize:
                    raise ValueError(f"a tensor of {count} numbers in {member.file_size} bytes")
                room -= member.file_size
                if room < 0:
                    raise ValueError("tensors of more bytes than it has")
                data = bytearray(archive.read(member))
                read[key] = (
                    torch.frombuffer(data, dtype=dtype) if data else torch.empty(0).to(dtype)
                )
            return read[key]

        content = members["data.pkl"]
        if content.compress_type:
            raise ValueError("it is compressed")
        data = archive.read(content)
        return interpret(io.BytesIO(data), MOST_COPIES * len(data), storage, foreign)


def _read_stream(file: mmap.mmap, foreign: set[str]) -> Any:
    """The form before torch 1.6: pickles one after the other, then the storages' bytes."""
    _skip_header(file)
    made: dict[str, Tensor] = {}
    room = len(file)

    def storage(values: Any) -> Any:
        nonlocal room
        if _of(tuple, values)[0] == "module":  # a class and its source
            return values[1]
        kind, key, count = _storage_id(values)
        if key not in made:
            dtype = STORAGES[_of(_Global, kind).name]
            room -= count * dtype.itemsize
            if count < 0 or room < 0:
                raise ValueError(f"a tensor of {count} numbers in {len(file)} bytes")
            made[key] = torch.empty(count, dtype=dtype)
        return made[key]

    content = interpret(file, MOST_COPIES * len(file), storage, foreign)
    for key in _of(list, interpret(file)):
        values, data = made[_of(str, key)], file.read(8)
        size = values.numel() * values.dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise ValueError("it ends within a tensor")
        if size:
            values.copy_(torch.frombuffer(bytearray(data), dtype=values.dtype))
    return content


def _skip_header(file: mmap.mmap | io.BytesIO) -> None:
    if (interpret(file), interpret(file)) != (STORAGE_MAGIC, STORAGE_VERSION):
        raise ValueError("tensors in no format that is known")
    interpret(file)  # the sizes of integers on the machine that wrote it


def state_dict(node: Node) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a network, by torch's names, in torch's order.

    Raises:
        InstilError: The modules do not form a tree, or hold something else than tensors.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(module: Node, prefix: str, depth: int) -> None:
        if id(module) in seen or depth > DEEPEST_MODULE:
            raise InstilError(f"{prefix or node.class_name}: the file's modules do not form a tree")
        seen.add(id(module))
        unsaved = _member(module, "_non_persistent_buffers_set", set)
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _member(module, kind, dict).items():
                if name in unsaved:
                    continue
                if isinstance(tensor, Tensor):
                    tensors[f"{prefix}{name}"] = tensor
                elif tensor is not None:
                    raise InstilError(f"{prefix}{name}: expected a tensor in the file")
        for name, child in _member(module, "_modules", dict).items():
            if isinstance(child, Node):
                walk(child, f"{prefix}{name}.", depth + 1)
            elif child is not None:
                raise InstilError(f"{prefix}{name}: expected a module in the file")

    walk(node, "", 0)
    return tensors


def _member(node: Node, name: str, kind: type) -> Any:
    value = node.state.get(name) or kind()
    if not isinstance(value, kind):
        raise InstilError(f"{node.class_name}: the file's {name} is no {kind.__name__}")
    return value


def arguments(node: Node) -> dict[str, Any]:
    """The keyword arguments an object was made with, as NVIDIA's classes record them.

    Raises:
        InstilError: None are recorded, some were given without a name, or one is no plain value.
    """
    named = node.state.get("_init_kwargs")
    if not isinstance(named, dict) or node.state.get("_init_args"):
        raise InstilError(
            f"{node.class_name}: the file does not name the arguments this network was made with"
        )
    budget = MOST_ARGUMENTS

    def check(value: Any, key: str, depth: int = 0) -> None:
        nonlocal budget
        budget -= 1
        if isinstance(value, list | tuple | dict) and budget > 0 and depth < 4:
            for each in value.values() if isinstance(value, dict) else value:
                check(each, key, depth + 1)
        elif not isinstance(value, bool | int | float | str | None):
            raise InstilError(f"{node.class_name}: argument {key} of the file is no plain value")

    for key, value in named.items():
        check(value, key)
    return dict(named)


def interpret(
    file: mmap.mmap | io.BytesIO,
    allowance: int = 0,
    storage: Callable[[Any], Any] | None = None,
    foreign: set[str] | None = None,
) -> Any:
    """Run a pickle's opcodes on a stack of plain values; leaves `file` behind the pickle.

    Args:
        file: At the start of a pickle.
        allowance: Bytes that calls may be given in all; 0 allows no calls.
        storage: Makes a value of a persistent id, as torch's storages have; None allows none.
        foreign: Takes the names of unknown globals, for whose objects a `Node` stands; None refuses
            them.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    key_of = _key if foreign is None else _any_key

    def above_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    decoded: Iterator[tuple[Any, Any, Any]] = pickletools.genops(cast(Any, file))
    for number, (opcode, argument, _) in enumerate(decoded):
        if number == 0 and opcode.name != "PROTO":
            raise ValueError("it does not begin like one of protocol 2 to 5")
        if number > MOST_OPCODES:
            raise RefusedError(f"it has more than {MOST_OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[opcode.name])
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append(CONTAINERS[opcode.name]())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                _items(list, stack[-1]).append(value)
            case "APPENDS":
                values = above_mark()
                _items(list, stack[-1]).extend(values)
            case "ADDITEMS":
                values = above_mark()
                _items(set, stack[-1]).update(map(key_of, values))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _items(dict, stack[-1])[key_of(key)] = value
            case "SETITEMS":
                values = above_mark()
                pairs = zip(map(key_of, values[::2]), values[1::2], strict=True)
                _items(dict, stack[-1]).update(pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                module, name = argument.split(" ", 1)
                stack.append(_global(module, name, foreign))
            case "STACK_GLOBAL":
                name, module = _of(str, stack.pop()), _of(str, stack.pop())
                stack.append(_global(module, name, foreign))
            case "REDUCE" | "NEWOBJ":
                values, made = _of(tuple, stack.pop()), stack.pop()
                if foreign is not None and isinstance(made, Node):  # what a foreign call returned
                    made = _Global(made.class_name, lambda *_, name=made.class_name: Node(name))
                allowance -= 1 + sum(map(_bytes_of, values))
                if allowance < 0:
                    raise RefusedError(f"it gives too much to {_of(_Global, made).name}")
                stack.append(_of(_Global, made).build(*values))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state, foreign)
            case "BINPERSID" if storage is not None:
                stack.append(storage(stack.pop()))
            case name:
                raise RefusedError(f"it uses the opcode {name}")
    raise ValueError("it has no end")


@dataclass(frozen=True)
class _Global:
    """A name the file refers to, and what stands for its call."""

    name: str
    build: Callable[..., Any]


def _global(module: str, name: str, foreign: set[str] | None = None) -> _Global:
    full = f"{module}.{name}"
    if full in _BUILDERS:
        return _Global(full, _BUILDERS[full])
    if f"{module}.".startswith("torch.nn.modules.") and name.isidentifier():
        return _Global(full, lambda: Node(name))
    if module == "torch" and name in STORAGES:
        return _Global(name, _not_called)
    if foreign is not None and full.replace(".", "_").isidentifier():  # a message will name it
        foreign.add(full)
        return _Global(full, lambda *_: Node(name))
    raise RefusedError(f"it asks for the global {full}")


def _set_state(value: Any, state: Any, foreign: set[str] | None) -> None:
    if foreign is not None and (isinstance(value, dict) or not isinstance(state, dict | tuple)):
        return  # a mapping's attributes, such as `_metadata`; a foreign class's own state
    if isinstance(value, Node):
        slots = foreign is not None and isinstance(state, tuple)  # (attributes, slots)
        for part in state if slots else [_of(dict, state)]:
            value.state.update(part if isinstance(part, dict) else {})
    elif isinstance(value, _DType):
        value.order = state[1]
    elif isinstance(value, Array):
        value.fill(*_of(tuple, state))
    else:
        raise RefusedError(f"it sets the state of a {type(value).__name__}")


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__.strip('_')} was expected, got {type(value).__name__}")
    return value


def _items(kind: type, value: Any) -> Any:
    """A container; of an object that stands for one, its state, and a list nobody reads."""
    if isinstance(value, Node):
        return value.state if kind is dict else kind()
    return _of(kind, value)


def _bytes_of(value: Any) -> int:
    """The memory a copy of an argument takes, within a factor of two."""
    if isinstance(value, str | bytes):
        return len(value)
    return 64 * len(value) if isinstance(value, list) else 0


def _key(value: Any) -> Any:
    """A key of a mapping; hashing nested tuples could take for ever."""
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"a {type(value).__name__} as key")
    return value


def _any_key(value: Any) -> Any:
    """A key of any kind, those that are no plain values by their kind."""
    return value if isinstance(value, str | int | float | bool | None) else type(value)


# What stands for the globals of a checkpoint. Each takes the arguments the file gives.


def _persistent(meta: Any) -> Node:
    """NVIDIA's persistent object; `module_src`, the source of its class, is left aside."""
    if _of(dict, meta).get("type") != "class":
        raise ValueError("a persistent object that is no class")
    return Node(_of(str, meta["class_name"]), _of(dict, meta["state"]))


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    if items:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _set(*items: Any) -> set[Any]:
    return {_key(each) for values in items for each in _of(list, values)}


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError("bytes that are not in latin1")
    return _of(str, text).encode("latin1")


def _not_called(*_: Any) -> Any:
    raise ValueError("a class that is called")


class _DType:
    """A numpy number type that is being unpickled."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("f2", "f4", "f8", "b1", "u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8"):
            raise ValueError("a numpy type that is no number")
        self.name, self.order = name, "<"


def _numbers(dtype: Any, data: Any) -> np.ndarray[Any, Any]:
    """A view of bytes as numbers, (N,)."""
    if _of(_DType, dtype).order not in ("<", "|"):
        raise ValueError("numpy numbers of a foreign byte order")
    return np.frombuffer(_of(bytes, data), f"<{dtype.name}")


def _scalar(dtype: Any, data: Any) -> bool | int | float:
    (number,) = _numbers(dtype, data)
    return number.item()


def _array(kind: Any, *_: Any) -> Array:
    if _of(_Global, kind).name != "numpy.ndarray":
        raise ValueError("an array of a foreign class")
    return Array()


def _parameter(data: Any, *_: Any) -> Tensor:
    return _of(Tensor, data)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, which must lie inside it and may not be larger."""
    size, stride = _of(tuple, size), _of(tuple, stride)
    numbers = (offset, *size, *stride)
    fits = all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    if not fits or not len(size) == len(stride) <= 8:
        raise ValueError("a tensor of impossible size, stride or offset")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    available = _of(Tensor, storage).numel()
    if count > available or (count and last >= available):
        raise ValueError(f"a tensor of size {size} in a storage of {available}")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def _storage(data: Any) -> Tensor:
    """The numbers of a storage, (numel,), from what `torch.save` wrote of it."""
    file = io.BytesIO(_of(bytes, data))
    _skip_header(file)
    kind, key, count = interpret(file, storage=_storage_id)
    keys = interpret(file)
    dtype = STORAGES[_of(_Global, kind).name]
    declared = int.from_bytes(file.read(8), "little", signed=True)
    rest = data[file.tell() :]
    if keys != [key] or count != declared or len(rest) != count * dtype.itemsize:
        raise ValueError(f"a tensor of {count} numbers in {len(rest)} bytes")
    # A copy, since a tensor may be written to and bytes may not.
    return torch.frombuffer(bytearray(rest), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _storage_id(values: Any) -> tuple[Any, str, int]:
    """Class, key and numel of ("storage", class, key, device, numel, view); a view is refused."""
    what, kind, key, _, count, *view = _of(tuple, values)
    if what != "storage" or any(each is not None for each in view):
        raise ValueError("a storage that is a view")
    return kind, _of(str, key), _of(int, count)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "dnnlib.util.EasyDict": _ordered_dict,
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
    "numpy.ndarray": _not_called,
    "numpy.core.multiarray.scalar": _scalar,  # before numpy 2
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _array,
    "builtins.set": _set,
    "builtins.bytes": lambda: b"",
    "__builtin__.set": _set,  # as protocol 2 writes it
    "__builtin__.bytes": lambda: b"",
}
