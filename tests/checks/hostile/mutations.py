"""Damage of bytes and of JSON, as a function of a random number generator."""

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

EDGES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 64)
# What a field may hold instead of what it should.
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", " ", "\0", "a" * 300, "x" * 100_000, "\ud800", "\x1b[2J",
    "../..", "/", "null", "1e5", [], {}, [[]], [None], {"": 0}, {"kind": []}, [0] * 5000,
)  # fmt: skip


def damage(content: bytes, dice: Random) -> bytes:
    """Bytes that are nearly these: cut, flipped, repeated, overwritten, or others altogether."""
    ways: tuple[Callable[[bytes, Random], bytes], ...] = (_cut, _flip, _flip, _overwrite, _splice)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        content = dice.choice(ways)(content, dice)
    return dice.choice((b"", b"\0" * 100, dice.randbytes(200))) if dice.random() < 0.03 else content


def _cut(content: bytes, dice: Random) -> bytes:
    return content[: dice.randrange(len(content) + 1)]


def _flip(content: bytes, dice: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.randint(1, 8) if changed else 0):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, dice: Random) -> bytes:
    place = dice.randrange(len(content) + 1)
    number = struct.pack(dice.choice("<>") + "q", dice.choice((-1, 0, 2**31, 2**40, 2**62)))
    patch = dice.choice((*EDGES, number))
    return content[:place] + patch + content[place + len(patch) :]


def _splice(content: bytes, dice: Random) -> bytes:
    """A piece is left out, or stands there once more."""
    one, two = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    return content[:one] + content[two:] if dice.random() < 0.5 else content[:two] + content[one:]


def warp(value: Any, dice: Random) -> Any:
    """A JSON value in which one to three places hold something else, or nothing."""
    changed = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 2, 3))):
        changed = _warp_once(changed, dice)
    return changed


def _warp_once(value: Any, dice: Random) -> Any:
    if isinstance(value, dict | list) and value and dice.random() < 0.85:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        way = dice.random()
        if way < 0.15:
            del value[key]
        elif way < 0.25 and isinstance(value, dict):
            value[dice.choice(("", "x" * 1000, f"{key}\x1b[0m", f" {key}"))] = value.pop(key)
        else:
            value[key] = _warp_once(value[key], dice)
        return value
    return copy.deepcopy(dice.choice(JUNK))


def json_bytes(value: Any, dice: Random) -> bytes:
    """A JSON value as a file: warped, as bytes that are damaged, or in a shape nobody writes."""
    way = dice.random()
    if way < 0.6:
        return json.dumps(warp(value, dice), indent=dice.choice((None, 2))).encode()
    text = json.dumps(value)
    if way < 0.85:
        return damage(text.encode(), dice)
    first = next(iter(value)) if isinstance(value, dict) and value else "x"
    deep = dice.choice((500, 5_000, 200_000))
    return dice.choice(
        (
            b"",
            b"null",
            b"[]",
            b"\xef\xbb\xbf" + text.encode(),
            text.encode("utf-16"),
            text.encode().replace(b"e", b"\xe9"),
            b"[" * deep,
            b'{"%s":' % first.encode() * deep,
            b'{"%s":' % first.encode() + b"[" * deep + b"]" * deep + b"}",
            b'{"%s": %s}' % (first.encode(), b"9" * deep),
            text.encode()[:-1] + b", " + text.encode()[1:],
            text.encode() + text.encode(),
        )
    )
