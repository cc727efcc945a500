"""Read folders, zips and arrays of images that we did not write, with limits on size."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from instil.base.data.images import Images
from instil.base.data.pictures import Pictures, number_classes, open_packed
from instil.base.errors import InstilError

KINDS = ("images-idx3", "labels-idx1")
MOST_UNPACKED = 1100  # bytes that deflate unpacks from one


def load_path(path: Path, source: str) -> Images:
    """Read a folder, `.zip` or `.npz` into memory.

    Raises:
        InstilError: It is none of these, a file is unreadable, or sizes are mixed.
    """
    if path.suffix == ".npz" and not path.is_dir():
        return _load_arrays(path, source)
    if not path.is_dir() and path.suffix != ".zip":
        raise InstilError(
            f"{source}: expected a folder, a .zip or a .npz, got a {path.suffix!r} file"
        )
    files = Pictures(path, source)
    parts = [range(k, min(k + 64, len(files))) for k in range(0, len(files), 64)]
    pixels = [batch for batch in files.batches(parts) if isinstance(batch, Tensor)]
    return Images(torch.cat(pixels), *files.labels(), source)


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
                with open_packed(archive, info.filename) as file:
                    _check_header(file, name, info.file_size)
                with open_packed(archive, info.filename) as file:
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
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    classes = number_classes(None if labels is None else [str(label) for label in labels])
    return Images(images, *classes, source)
