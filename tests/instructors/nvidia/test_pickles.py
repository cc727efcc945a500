"""NVIDIA's pickles are read as data; what else a pickle can do is refused by name."""

import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from instil.base.errors import InstilError
from instructors.nvidia import pickles
from instructors.nvidia.pickles import Node, arguments, read, state_dict


@pytest.fixture
def written(tmp_path):
    """Write bytes, or pickle an object, to a file."""

    def write(content, protocol=4):
        path = tmp_path / "network.pkl"
        if not isinstance(content, bytes):
            content = pickle.dumps(content, protocol=protocol)
        path.write_bytes(content)
        return path

    return write


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *values):
        self.call = (function, values)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Lets the result of one call be what another calls."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_comes_back_bit_by_bit(persistent, written, protocol):
    whole = torch.randn(6, 4)
    tensors = {
        "weight": whole,
        "enc.8x8_conv.weight": whole[1:4, ::2],  # a view of the same storage
        "enc.8x8_conv.half": torch.randn(3).half(),
        "enc.8x8_conv.brain": torch.randn(3).bfloat16(),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
    }
    tensors = {name: tensors[name] for name in sorted(tensors, key=lambda name: "." in name)}
    given = {"img_resolution": 8, "channel_mult": [1, 2], "nested": {"a": None}, "name": "x"}
    network = persistent(
        "Net", tensors, given, scale=np.sqrt(0.5), one=np.int64(3), yes=np.bool_(True), raw=b""
    )
    root = read(written({"ema": network, "dataset_kwargs": OrderedDict(path="x")}, protocol))
    node = root["ema"]
    assert node.class_name == "Net"
    assert root["dataset_kwargs"] == {"path": "x"}
    assert arguments(node) == given
    assert (node.state["scale"], node.state["one"], node.state["yes"]) == (0.5**0.5, 3, True)
    assert node.state["training"] is True
    found = state_dict(node)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_torch_modules_come_back_with_the_keys_of_torch(written, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module[1].register_buffer("scratch", torch.ones(2), persistent=False)
    node = read(written(module, protocol))
    assert node.class_name == "Sequential"
    expected = module.state_dict()
    found = state_dict(node)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numpy_arrays_are_read_as_numbers(written, protocol):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True]), "c": []}
    found = read(written(values, protocol))
    for name in ("a", "b"):
        assert found[name].shape == values[name].shape
        assert found[name].numbers.tolist() == values[name].flatten().tolist()
    assert found["c"] == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["x"], dtype=object), "numpy type that is no number"),
        (np.zeros(2, ">f4"), "foreign byte order"),
        (np.asfortranarray(np.zeros((2, 3))), "no format that is known"),
        (Calls(np.zeros(2).__reduce__()[0], int, (0,), b"b"), "the global builtins.int"),
    ],
)
def test_other_arrays_are_refused(written, array, message):
    with pytest.raises(InstilError, match=message):
        read(written({"a": array}))


def test_an_array_has_the_numbers_it_says(written):
    whole = pickle.dumps(np.zeros(3), 4)
    assert whole.count(b"K\x03\x85") == 1
    with pytest.raises(InstilError, match="of another size than it says"):
        read(written(whole.replace(b"K\x03\x85", b"K\x04\x85")))


def test_source_text_is_never_run(persistent, written, tmp_path):
    trace = tmp_path / "trace"
    source = f"open({str(trace)!r}, 'w').close()"
    path = written({"ema": persistent("Net", {"weight": torch.ones(2)}, source=source)})
    assert state_dict(read(path)["ema"])["weight"].tolist() == [1, 1]
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # what other readers do
    assert trace.exists()


HOSTILE = {
    "posix.system": lambda trace: Calls(os.system, f"touch {trace}"),
    "builtins.eval": lambda trace: Calls(eval, f"open({trace!r}, 'w')"),
    "builtins.getattr": lambda trace: Calls(Calls(getattr, "x", "upper")),
    "builtins.bytearray": lambda trace: bytearray(b"x"),
    "torch.storage.UntypedStorage": lambda trace: Calls(torch.UntypedStorage, 10**15),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("inside", [False, True])
def test_unknown_globals_are_refused_by_name(persistent, written, tmp_path, name, protocol, inside):
    trace = tmp_path / "trace"
    hostile = HOSTILE[name](str(trace))
    path = written({"ema": persistent("Net", {}, {"x": hostile})} if inside else hostile, protocol)
    with pytest.raises(InstilError) as caught:
        read(path)
    message = str(caught.value)
    named = name.replace("builtins", "__builtin__") if protocol == 2 else name
    assert f"asks for the global {named}," in message
    assert "nothing in it was run" in message
    assert "open an issue" in message
    assert not trace.exists()


def test_a_storage_is_read_by_the_same_rules(written, tmp_path):
    trace = tmp_path / "trace"
    inner = pickle.dumps(Calls(os.system, f"touch {trace}"), 2)
    path = written(Calls(torch.storage._load_from_bytes, inner))
    with pytest.raises(InstilError, match=r"posix\.system"):
        read(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"ctorch.nn.modules.linear\nLinear\n}b.", "state of a _Global"),
        (b"ccollections\nOrderedDict\n)R)R.", "Global was expected, got dict"),
        (b"ctorch\nFloatStorage\n)R.", "a class that is called"),
        (b"X\x01\x00\x00\x00aQ.", "the opcode BINPERSID"),
        (b"(cposix\nsystem\no.", r"the global posix\.system"),
        (b"\x82\x01.", "the opcode EXT1"),
        (b"}]K\x01s.", "a list as key"),
        (b"h\x07.", "not a whole pickle"),
        (b".", "not a whole pickle"),
    ],
)
def test_what_no_checkpoint_does_is_refused(written, opcodes, message):
    with pytest.raises(InstilError, match=message):
        read(written(b"\x80\x02" + opcodes))


def stored(numel, declared, data):
    """What `torch.save` writes of a storage, with sizes of one's own."""
    parts = [pickle.dumps(pickles.STORAGE_MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
    body = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    body += b"X\x03\x00\x00\x00cpu" + pickle.dumps(numel, 2)[2:-1] + b"NtQ."
    keys = pickle.dumps(["0"], 2)
    return b"".join([*parts, body, keys, struct.pack("<q", declared), data])


def tensor(size, stride, offset=0, numel=4):
    storage = Calls(torch.storage._load_from_bytes, stored(4, numel, bytes(16)))
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def test_the_imitated_storage_is_one(written):
    assert read(written(tensor((2, 2), (2, 1)))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # bytes that are not there
        b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x02c__builtin__\nbytes\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R.",
        Calls(torch.storage._load_from_bytes, stored(10**13, 10**13, bytes(16))),
        Calls(torch.storage._load_from_bytes, stored(4, 10**13, bytes(16))),
        Calls(torch.storage._load_from_bytes, stored(-4, -4, bytes(16))),
        tensor((10**6, 10**6), (0, 0)),
        tensor((10**6, 10**6), (10**6, 1)),
        tensor((2,), (1,), offset=10**12),
        tensor((2,), (-1,), offset=1),
        tensor((1,) * 9, (1,) * 9),
        tensor((2**200,), (2**200,)),
    ],
)
def test_declared_sizes_take_no_memory(written, bomb):
    with pytest.raises(InstilError, match="not a whole pickle of a network"):
        read(written(bomb))


LAUGHS = b"]\x94" + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(100))  # 2**100 when printed


@pytest.mark.parametrize(
    "opcodes",
    [
        LAUGHS + b"\x8c\x01a\x93.",
        b"\x8c\x01a" + LAUGHS + b"\x93.",
        b"cnumpy\ndtype\n" + LAUGHS + b"\x85R.",
        b"c_codecs\nencode\n\x8c\x01a" + LAUGHS + b"\x86R.",
        b"ctorch._utils\n_rebuild_tensor_v2\nNK\x00(" + LAUGHS + b"t)tR.",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x8c\x04type"
        + LAUGHS
        + b"s\x85R.",
    ],
)
def test_nested_lists_are_never_spelled_out(written, opcodes):
    with pytest.raises(InstilError, match="not a whole pickle") as caught:
        read(written(b"\x80\x04" + opcodes))
    assert len(str(caught.value)) < 300


def test_what_is_copied_again_and_again_is_counted(written):
    encode = b"c_codecs\nencode\n\x94X\x10\x27\x00\x00" + b"x" * 10_000 + b"\x94\x8c\x06latin1\x94"
    one = b"h\x00h\x01h\x02\x86R"
    head = b"\x80\x04" + encode
    assert read(written(head + one * 3 + b".")) == b"x" * 10_000
    with pytest.raises(InstilError, match=r"gives too much to _codecs\.encode"):
        read(written(head + one * 1000 + b"."))
    inner = b"\x80\x02ccollections\nOrderedDict\n)R."  # inside a storage nothing is called
    path = written(Calls(torch.storage._load_from_bytes, inner))
    with pytest.raises(InstilError, match=r"gives too much to collections\.OrderedDict"):
        read(path)


def test_a_far_memo_takes_no_memory(written):
    assert read(written(b"\x80\x02Nr\xff\xff\xff\x7f.")) is None


def test_a_flood_of_opcodes_is_refused(written, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    with pytest.raises(InstilError, match="more than 1,000 opcodes"):
        read(written(b"\x80\x04" + b"\x8f" * 2000 + b"."))


def test_arguments_that_grow_when_they_are_written_out(persistent, written):
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    with pytest.raises(InstilError, match="argument x of the file is no plain value"):
        arguments(read(written(persistent("Net", {}, {"x": laughs}))))
    wide = [[[1] * 1000] * 1000] * 1000
    with pytest.raises(InstilError, match="argument x"):
        arguments(read(written(persistent("Net", {}, {"x": wide}))))


def test_arguments_without_a_name_are_refused(persistent, written):
    node = read(written(persistent("Net", _init_args=(3,))))
    with pytest.raises(InstilError, match="Net: the file does not name the arguments"):
        arguments(node)
    with pytest.raises(InstilError, match="does not name the arguments"):
        arguments(Node("Net"))


def test_modules_that_are_no_tree_are_refused():
    shared = Node("Module")
    ring = Node("Module")
    ring.state["_modules"] = {"again": ring}
    chain = Node("Module")
    for _ in range(2000):
        chain = Node("Module", {"_modules": {"in": chain}})
    for node in (Node("Net", {"_modules": {"a": shared, "b": shared}}), ring, chain):
        with pytest.raises(InstilError, match="do not form a tree"):
            state_dict(node)
    with pytest.raises(InstilError, match="a: expected a tensor"):
        state_dict(Node("Net", {"_parameters": {"a": 3}}))
    with pytest.raises(InstilError, match="a: expected a module"):
        state_dict(Node("Net", {"_modules": {"a": 3}}))
    with pytest.raises(InstilError, match="the file's _modules is no dict"):
        state_dict(Node("Net", {"_modules": [3]}))


def test_files_that_are_no_pickles(tmp_path, written):
    for content in (b"", b"hello, I am a text file\n", b"\x1f\x8b\x08gzip", b"# x\n", b"PK\3\4"):
        with pytest.raises(InstilError, match=r"network\.pkl: not a whole pickle"):
            read(written(content))
    with zipfile.ZipFile(tmp_path / "zip.pkl", "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(InstilError, match="not a whole pickle"):
        read(tmp_path / "zip.pkl")
    for path in (tmp_path / "nothing.pkl", tmp_path):
        with pytest.raises(InstilError, match="cannot be read"):
            read(path)


def test_truncated_and_damaged_files_raise_the_one_error(persistent, written):
    tensors = {"a.weight": torch.randn(3, 2), "b": torch.randn(2)}
    whole = pickle.dumps({"ema": persistent("Net", tensors, {"x": [1, 2.5]})}, 4)
    dice = random.Random(0)
    for cut in range(0, len(whole), 7):
        with pytest.raises(InstilError):
            read(written(whole[:cut]))
    refused = 0
    for _ in range(800):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            read(written(bytes(damaged)))
        except InstilError:
            refused += 1
    assert refused > 150
