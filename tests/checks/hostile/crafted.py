"""Pickles that somebody made to run code or to take memory, by what they try.

Each would touch the file it is given the name of, if what it holds were run.
"""

import os
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = (function, values)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Lets the result of one call be what another calls."""


class State:
    """Pickles as an object of one's own that is given a state, as BUILD does."""

    def __init__(self, function: Any, values: tuple[Any, ...], state: Any) -> None:
        self.parts = (function, values, state)

    def __reduce__(self) -> Any:
        return self.parts


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """A name for the pickler; theirs would compile and run the source in `meta`."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def persistent(class_name: str, state: Mapping[str, Any], source: str = "") -> Call:
    """An object as NVIDIA's code pickles it, with the source of its class."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name}
    return Call(_reconstruct_persistent_obj, meta | {"state": dict(state)})


@contextmanager
def _nvidias_modules() -> Iterator[None]:
    """Give the pickler the module that it looks names up in."""
    module: Any = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    names = {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def dumped(value: Any, protocol: int = 4) -> bytes:
    """A pickle of what may hold persistent objects."""
    with _nvidias_modules():
        return pickle.dumps(value, protocol)


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _storage(numel: int, data: bytes) -> bytes:
    """What `torch.save` writes of a storage that declares `numel` numbers."""
    body = b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    body += pickle.dumps(numel, 2)[2:-1] + b"NtQ."
    heads = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(
        [*(pickle.dumps(head, 2) for head in heads), body, pickle.dumps(["0"], 2),
         struct.pack("<q", numel), data]
    )  # fmt: skip


def _tensor(size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4) -> Call:
    whole = _storage(numel, bytes(16))
    rebuild: Any = torch._utils._rebuild_tensor_v2
    load: Any = torch.storage._load_from_bytes
    return Call(rebuild, Call(load, whole), 0, size, stride, False, {})


def _laughs(depth: int) -> bytes:
    """Nested lists of 2**depth ends, in `depth` opcodes each."""
    return b"]\x94" + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(depth))


def _network(state: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    return {"ema": persistent("EDMPrecond", state, source)}


def _shell(trace: str) -> str:
    return f"touch {trace}"


def _code(trace: str) -> str:
    return f"open({trace!r}, 'w').close()"


CORPUS: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda trace: dumped(Call(os.system, _shell(trace))),
    "os.system, protocol 2": lambda trace: dumped(Call(os.system, _shell(trace)), 2),
    "os.system, protocol 0": lambda trace: b"cposix\nsystem\n(V" + _shell(trace).encode()
    + b"\ntR.",
    "os.system by INST": lambda trace: b"\x80\x02(" + _text(_shell(trace)) + b"iposix\nsystem\n.",
    "os.system by OBJ": lambda trace: b"\x80\x02(cposix\nsystem\n" + _text(_shell(trace)) + b"o.",
    "os.system by NEWOBJ_EX": lambda trace: b"\x80\x04cposix\nsystem\n" + _text(_shell(trace))
    + b"\x85}\x92.",
    "os.system by an extension code": lambda trace: b"\x80\x02\x82\x01" + _text(_shell(trace))
    + b"\x85R.",
    "subprocess.call": lambda trace: b"\x80\x02csubprocess\ncall\n" + _text(_shell(trace))
    + b"\x88\x86R.",
    "builtins.eval": lambda trace: dumped(Call(eval, _code(trace))),
    "builtins.exec": lambda trace: dumped(Call(exec, _code(trace))),
    "builtins.eval, protocol 2": lambda trace: dumped(Call(eval, _code(trace)), 2),
    "builtins.open": lambda trace: dumped(Call(open, trace, "w")),
    "builtins.getattr": lambda trace: b"\x80\x04cbuiltins\ngetattr\ncbuiltins\n__import__\n"
    + _text("os") + b"\x85R" + _text("system") + b"\x86R" + _text(_shell(trace)) + b"\x85R.",
    "builtins.__import__": lambda trace: b"\x80\x02c__builtin__\n__import__\nX\x02\0\0\0os\x85R.",
    "a dotted global": lambda trace: b"\x80\x04X\x05\0\0\0torchX\x09\0\0\0os.system\x93"
    + _text(_shell(trace)) + b"\x85R.",
    "a global below torch.nn.modules": lambda trace: b"\x80\x04ctorch.nn.modules.os\nsystem\n"
    + _text(_shell(trace)) + b"\x85R.",
    "torch.load": lambda trace: b"\x80\x02ctorch\nload\n" + _text(trace) + b"\x85R.",
    "torch.hub.load": lambda trace: b"\x80\x02ctorch.hub\nload\n" + _text(trace) + b"\x85R.",
    "pickle.loads": lambda trace: dumped(
        Call(pickle.loads, dumped(Call(os.system, _shell(trace))))
    ),
    "inside a storage": lambda trace: dumped(
        Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, _shell(trace)), 2))
    ),
    "tampered source": lambda trace: dumped(_network({}, _code(trace))),
    "tampered source and a meta hook": lambda trace: dumped(
        {"ema": Call(_reconstruct_persistent_obj, {
            "type": "class", "version": 6, "module_src": _code(trace), "class_name": "EDMPrecond",
            "state": {}, "import_hook": Call(os.system, _shell(trace)),
        })}
    ),
    "a call in a network's state": lambda trace: dumped(
        _network({"_parameters": {"w": Call(os.system, _shell(trace))}})
    ),
    "a call as an argument": lambda trace: dumped(
        _network({"_init_kwargs": {"sigma_min": Call(eval, _code(trace))}, "_init_args": ()})
    ),
    "nested reduce": lambda trace: dumped(Call(Call(Call(Call(eval, _code(trace)))))),
    "deep reduce": lambda trace: b"\x80\x02" + b"ccollections\nOrderedDict\n" * 5_000
    + b")R" * 5_000 + b".",
    "a state for a function": lambda trace: b"\x80\x02cposix\nsystem\n}b.",
    "a state for a network": lambda trace: dumped(
        State(torch.nn.Identity, (), {"__reduce__": Call(os.system, _shell(trace))})
    ),
    "a setter of dunders": lambda trace: dumped(
        _network({"__class__": "os", "__dict__": {"a": 1}, "_modules": {"__init__": None}})
    ),
    "bytes that are not there": lambda trace: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a text that is not there": lambda trace: b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
    "a frame that is not there": lambda trace: b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N",
    "a long number": lambda trace: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "a long number of a megabyte": lambda trace: b"\x80\x02\x8b" + struct.pack("<i", 2**20)
    + b"\x7f" * 2**20 + b".",
    "bytes of a number": lambda trace: b"\x80\x02c__builtin__\nbytes\n\x8a\x06"
    + (10**13).to_bytes(6, "little") + b"\x85R.",
    "a storage that declares a terabyte": lambda trace: dumped(
        Call(torch.storage._load_from_bytes, _storage(10**13, bytes(16)))
    ),
    "a tensor of no strides": lambda trace: dumped(_tensor((10**6, 10**6), (0, 0))),
    "a tensor of a huge size": lambda trace: dumped(_tensor((2**200,), (1,))),
    "a memo far away": lambda trace: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "nested lists": lambda trace: b"\x80\x04" + _laughs(100) + b".",
    "nested lists as a network": lambda trace: b"\x80\x04}\x8c\x03ema" + _laughs(100) + b"s.",
    "nested tuples as a key": lambda trace: b"\x80\x04}" + b"N" + b"\x85" * 100_000 + b"Ns.",
    "a list in itself": lambda trace: b"\x80\x04]\x94h\0a.",
    "a network in itself": lambda trace: b"\x80\x04ctorch.nn.modules.linear\nLinear\n)\x81\x94}"
    b"\x8c\x08_modules}\x8c\x01ah\0ssb.",
    "marks without end": lambda trace: b"\x80\x04" + b"(" * 200_000 + b".",
    "lists in lists": lambda trace: b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "a name that talks to the terminal": lambda trace: b"\x80\x04c\x1b[2Jos\n\x1b[31msystem\n)R.",
    "a name of a megabyte": lambda trace: b"\x80\x04c" + b"x" * 2**20 + b"\ny\n)R.",
    "arguments nested a thousand deep": lambda trace: dumped(
        _network({"_init_kwargs": {"a": _nested(300)}, "_init_args": ()})
    ),
}  # fmt: skip


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
