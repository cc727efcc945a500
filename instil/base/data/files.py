"""Read folders, zips and arrays of images that we did not write, with limits on size."""

import math
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instil.base.data.images import Images
from instil.base.errors import InstilError
from instil.base.untrusted import is_file

KINDS = ("images-idx3", "labels-idx1")
# Limits of one image, 4096x4096, and of its file, in bytes.
MOST_PIXELS, LARGEST_FILE = 1 << 24, 1 << 27
MOST_UNPACKED = 1100  # bytes that deflate unpacks from one
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def _load_path(path: Path, source: str) -> Images:
    if path.is_dir():
        names = (file.relative_to(path).as_posix() for file in path.rglob("*") if is_file(file))
        return _decode(names, lambda name: (path / name).open("rb"), source)
    if path.suffix == ".npz":
        return _load_arrays(path, source)
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return _decode(archive.namelist(), partial(_open, archive), source)
        except InstilError:
            raise
        except Exception as error:  # of a directory that is none, zipfile raises half a dozen kinds
            raise InstilError(f"{source}: cannot be read ({error})") from None
    raise InstilError(f"{source}: expected a folder, a .zip or a .npz, got a {path.suffix!r} file")


def _open(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of an archive; LZMA and BZIP2 take what memory a file asks for."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("packed by another method than deflate; pack it again")
    return archive.open(info)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Read those arrays of a `.npz` that are in `names`; nothing is unpickled.

    Raises:
        InstilError: The file is not a `.npz`, or an array declares more than the file has.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            inside = set(archive.namelist())
            for name in (name for name in names if f"{name}.npy" in inside):
                info = archive.getinfo(f"{name}.npy")
                if info.file_size > MOST_UNPACKED * max(1, info.compress_size):
                    raise ValueError(f"{name} unpacks to {info.file_size:,} bytes")
                with _open(archive, info.filename) as file:
                    _check_header(file, name, info.file_size)
                with _open(archive, info.filename) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of zip, of deflate, and of a header that is Python's own syntax
        raise InstilError(f"{path}: cannot be read as a .npz of arrays ({error})") from None
    return found


def _check_header(file: IO[bytes], name: str, size: int) -> None:
    """Refuse an array that is larger than its file: numpy would make room for it first."""
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} declares the shape {shape}, which is not there")


def _load_arrays(path: Path, source: str) -> Images:
    arrays = read_arrays(path, ("images", "arr_0", "labels"))
    key = next((k for k in ("images", "arr_0") if k in arrays), None)
    if key is None:
        raise InstilError(f"{source}: expected an array named images, found {list(arrays)}")
    pixels, labels = arrays[key], arrays.get("labels")
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.size == 0:
        raise InstilError(
            f"{source}: images must be uint8 (N, H, W) or (N, H, W, C), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
        raise InstilError(f"{source}: labels must be {len(pixels)} integers, got {labels.shape}")
    return _with_classes(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        None if labels is None else [str(label) for label in labels],
        source,
    )


def _pixels(file: IO[bytes]) -> np.ndarray[Any, Any]:
    """One image, grey or RGB, of a size that is held against its file's before it is decoded."""
    content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
    with Image.open(BytesIO(content)) as image:
        if math.prod(image.size) > MOST_PIXELS:
            raise ValueError(
                f"{image.size[0]}x{image.size[1]} pixels are too many; make it smaller"
            )
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _decode(names: Iterable[str], read: Callable[[str], IO[bytes]], source: str) -> Images:
    """Decode image files; a file's folder is its class."""
    paths = sorted(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES)
    if not paths:
        raise InstilError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")
    arrays = []
    for name in paths:
        try:
            with read(name) as file:
                arrays.append(_pixels(file))
        except Exception as error:  # Pillow's plugins and zipfile raise a dozen kinds
            raise InstilError(f"{source}: {name} is not a readable image ({error})") from None
        if arrays[-1].shape != arrays[0].shape:
            raise InstilError(
                f"{source}: {name} has the shape {arrays[-1].shape}, {paths[0]} has "
                f"{arrays[0].shape}; make all images one size and one mode first"
            )
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    folders = [PurePosixPath(name).parent.as_posix() for name in paths]
    return _with_classes(pixels, folders if len(set(folders)) > 1 else None, source)


def _with_classes(pixels: Tensor, names: list[str] | None, source: str) -> Images:
    if names is None:
        return Images(pixels, None, (), source)
    classes = sorted(set(names), key=_natural)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[name] for name in names])
    return Images(pixels, labels, tuple(name.rsplit("/", 1)[-1] for name in classes), source)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which 2 comes before 10."""
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name) if p)
