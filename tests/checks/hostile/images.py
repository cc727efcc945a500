"""Folders, archives and arrays of images that are damaged, mixed, or larger than they look."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from instil.base import data
from tests.checks.hostile.mutations import damage

MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
FORMATS = ("png", "jpeg", "bmp", "webp", "tiff", "gif")
SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}


def picture(dice: Random, mode: str, side: tuple[int, int] = (8, 8)) -> Image.Image:
    """Noise in a mode of Pillow."""
    pixels = np.frombuffer(dice.randbytes(side[0] * side[1] * 3), np.uint8).reshape(*side, 3)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return image.convert("L").convert(mode) if mode in ("I", "F") else _converted(image, mode)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except ValueError:  # no way from RGB to there
        return image


def encoded(dice: Random, kind: str, mode: str, side: tuple[int, int] = (8, 8)) -> bytes:
    """A picture in a file format; as RGB where the format has no such mode."""
    file = io.BytesIO()
    image = picture(dice, mode, side)
    options: dict[str, Any] = {}
    if kind in ("gif", "png", "webp", "tiff") and dice.random() < 0.1:  # animated
        options = {"save_all": True, "append_images": [picture(dice, "RGB", side)] * 3}
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, KeyError, UnboundLocalError):  # the last in Pillow 10
        file = io.BytesIO()
        picture(dice, "RGB", side).save(file, kind)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    code = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + code


def png(width: int, height: int, depth: int, colour: int, body: bytes, extra: bytes = b"") -> bytes:
    """A PNG that says what one likes."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that declare, or unpack to, very many pixels."""
    zeros = zlib.compress(bytes(9 * 8000), 9)
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    profile = _chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(50_000_000), 9))
    half = zlib.compress(bytes(13_001 * 13_000), 9)  # below what Pillow warns of twice
    full = zlib.compress(bytes((8_000 * 3 + 1) * 8_000), 9)
    return {
        "declares.png": png(2**31 - 1, 2**31 - 1, 8, 2, zeros),
        "wide.png": png(2**31 - 1, 1, 8, 0, zeros),
        "warns.png": png(13_000, 13_000, 8, 0, half),
        "large.png": png(8_000, 8_000, 8, 2, full),
        "declared.png": png(9_000, 9_000, 16, 6, zeros),
        "none.png": png(0, 0, 8, 2, zeros),
        "text.png": png(8, 8, 8, 0, zlib.compress(bytes(72)), text),
        "profile.png": png(8, 8, 8, 0, zlib.compress(bytes(72)), profile),
        "declares.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x02\x4c\x01\0;",
        "declares.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1,
                                            24, 0, 0, 0, 0, 0, 0),
        "declares.jpg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0"
        b"\x03\x11\0\xff\xd9",
    }  # fmt: skip


_bombs = bombs()


def one_file(dice: Random) -> tuple[str, bytes]:
    """Name and bytes of a file that may be an image."""
    way = dice.random()
    if way < 0.06:
        return dice.choice(list(_bombs.items()))
    kind = dice.choice(FORMATS)
    name = f"x.{SUFFIXES.get(kind, kind)}"
    mode, side = dice.choice(MODES), dice.choice(((8, 8), (8, 8), (8, 9), (1, 1), (40, 40)))
    content = encoded(dice, kind, mode, side)
    if way < 0.5:
        return name, damage(content, dice)
    if way < 0.56:
        return name, b""
    if way < 0.62:
        return f"x.{dice.choice(('png', 'jpg', 'tif', 'gif', 'webp', 'bmp'))}", content
    return name, content


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """Images by description, as every command that takes images reads them."""
    dice = Random(f"{start}/images/{number}")
    way = dice.random()
    kind, mode = dice.choice(FORMATS), dice.choice(MODES)
    files = {}
    for index in range(dice.randint(0, 4)):  # sound ones, which the odd one stands beside
        name = f"{dice.choice(('a/', 'b/', ''))}{index}.{SUFFIXES.get(kind, kind)}"
        files[name] = encoded(dice, kind, mode)
    odd, content = one_file(dice)
    files[f"{dice.choice(('a/', '', 'c/'))}{odd}"] = content
    if way < 0.5:
        path = folder / "photos"
        for name, each in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(each)
        _trap(path, dice)
    elif way < 0.75:
        path = folder / "photos.zip"
        path.write_bytes(_archive(files, dice))
    else:
        path = folder / "photos.npz"
        path.write_bytes(_arrays(dice))
    suffix = dice.choice(("",) * 8 + (":a", ":a-b", ":", ":a:b", ":\0", ":\x1b[2J"))

    def read() -> None:
        images = data.load(f"{path}{suffix}")
        assert images.pixels.ndim == 4, "no batch of images"
        assert images.labels is None or len(images.labels) == len(images)

    return read


def _trap(path: Path, dice: Random) -> None:
    """What else a folder may hold."""
    match dice.randrange(12):
        case 0:
            (path / "loop.png").symlink_to(path / "loop.png")
        case 1:
            (path / "up").symlink_to(path)
        case 2:
            (path / "folder.png").mkdir()
        case 3:
            (path / "gone.png").symlink_to(path / "nothing")
        case 4:
            (path / "notes.txt").write_text("no image")
        case 5:
            (path / "\x1b[2J.png").write_bytes(b"x")


def _archive(files: dict[str, bytes], dice: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(
        file,
        "w",
        dice.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
    ) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        way = dice.random()
        if way < 0.1:  # unpacks to a gigabyte
            with archive.open("bomb.png", "w") as bomb:
                for _ in range(16):
                    bomb.write(bytes(1 << 22))
        elif way < 0.15:
            archive.writestr("../../up.png", b"x")
    content = file.getvalue()
    if dice.random() < 0.1:  # encrypted, it says
        content = content.replace(
            b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0"
        )
    if dice.random() < 0.15:  # declares sizes that are not there
        at = content.find(b"PK\x01\x02")
        content = content[: at + 20] + b"\xff\xff\xff\x7f" * 2 + content[at + 28 :]
    return damage(content, dice) if dice.random() < 0.5 else content


def _arrays(dice: Random) -> bytes:
    shape: Any = dice.choice(
        ((2, 8, 8), (2, 8, 8, 3), (0, 8, 8), (2,), (), (2, 8, 8, 3, 1), (2, 0, 8), (2, 8, 8, 0))
    )
    kind = dice.choice(("u1", "u1", "u1", "f4", "i8", "U4", "c8", "b1"))
    arrays: dict[str, Any] = {
        dice.choice(("images", "images", "arr_0", "x")): np.zeros(shape, kind)
    }
    if dice.random() < 0.5:
        arrays["labels"] = dice.choice(
            (np.arange(2), np.zeros(2), np.array(["a", "b"]), np.array(3), np.array([2**62, -5]))
        )
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = file.getvalue()
    if dice.random() < 0.4:  # a header that says more, or is no header
        old = f"'shape': {shape}, ".encode()
        new = dice.choice(
            (
                b"'shape': (9999999999, 9999), ",
                b"'shape': (-1, 8, 8), ",
                b"'shape': (" * 40,
                b"'shape': (2**99,), ",
                b"'shape': ([],), ",
                b"'shape': None, ",
            )
        )
        rebuilt = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(rebuilt, "w") as out:
            for name in archive.namelist():
                inside = archive.read(name)
                if old in inside:
                    head = inside[:10], inside[10:].replace(old, new, 1)
                    inside = head[0] + head[1]
                    length = inside.index(b"\n") + 1 - 10 if b"\n" in inside else 0
                    inside = inside[:8] + struct.pack("<H", length) + inside[10:]
                out.writestr(name, inside)
        content = rebuilt.getvalue()
    return damage(content, dice) if dice.random() < 0.4 else content
