"""Images with labels, from a one-line description.

    digits                 scikit-learn's digits, the stored training split
    digits:held-out        the other part of it; digits:all is both
    digits:0-4             classes 0 to 4 of the training split; digits:held-out:0-4,7 works too
    mnist, mnist:test      torchvision's MNIST below $INSTIL_DATA
    mnist14                14x14, means of 2x2 pixels of four fifths of MNIST's test images;
                           mnist14:held-out is every fifth
    cifar10, cifar10:test  a local copy below $INSTIL_DATA, cifar10*train.zip and cifar10*test.zip
    cifar10:animals        its classes bird to horse; cifar10:vehicles is the rest
    photos/                a folder of images, its sub-folders as classes; photos.zip likewise
    photos.npz             arrays `images` (N, H, W[, C]) uint8 and, with classes, `labels` (N,)

Everything is uint8 in memory and float32 in [-1, 1] in a network.
"""

import gzip
import hashlib
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instil.errors import InstilError
from instil.plain import is_dir, is_file

KINDS = ("images-idx3", "labels-idx1")
# Of one image and its file: 4096x4096, and more bytes than those take without compression.
MOST_PIXELS, LARGEST_FILE = 1 << 24, 1 << 27
MOST_UNPACKED = 1100  # bytes of a byte that is packed, by deflate
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64 in [0, len(classes)), or None.
        classes: Name of each class.
        source: The description it was read from.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """One image without the batch axis: (C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def digest(self) -> str:
        """Eight hexadecimal digits that change with any pixel or label."""
        sha = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.numpy().tobytes())
        return sha.hexdigest()[:8]

    def select(self, rows: Tensor) -> "Images":
        """The images of some rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], labels=labels)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def floats(samples: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]; float64 as it is; everything else as float32."""
    if samples.dtype == torch.uint8:
        return to_float(samples)
    return samples if samples.dtype == torch.float64 else samples.float()


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8, rounded and clipped as diffusers does when it makes pictures.

    Raises:
        FloatingPointError: Some value is no number; as a byte it would look like one.
    """
    if not images.isfinite().all():
        raise FloatingPointError(
            f"{(~images.isfinite()).sum()} of {images.numel()} values of generated images are not "
            "finite; take weights of an earlier checkpoint, or float32"
        )
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def load(source: str) -> Images:
    """Read the images that `source` describes (see the module docstring).

    Raises:
        InstilError: The description is not understood, a file is missing or unreadable, sizes are
            mixed, or a class filter names no class.
    """
    if is_file(source) or is_dir(source):
        return _load_path(Path(source), source)
    name, *rest = source.split(":")
    reader: Callable[[str, str], Images] | None = READERS.get(name)
    if reader is None and not (is_file(name) or is_dir(name)):
        raise InstilError(
            f"{source}: no such file or folder, and not one of {', '.join(READERS)}; "
            "expected a data set's name, a folder, a .zip or a .npz"
        )
    splits = SPLITS.get(name, ("all",))
    split = next((part for part in rest if part in splits), splits[0])
    filters = [part for part in rest if part not in splits]
    if len(filters) > 1 or len(rest) - len(filters) > 1:
        raise InstilError(f"{source}: expected {name}[:split][:classes], splits are {splits}")
    images = reader(split, source) if reader else _load_path(Path(name), source)
    if not filters:
        return images
    return _filter(images, GROUPS.get(name, {}).get(filters[0], filters[0]))


SPLITS = {
    "digits": ("train", "held-out", "all", "extractor"),
    "mnist": ("train", "test"),
    "mnist14": ("train", "held-out", "all", "extractor"),
    "cifar10": ("train", "test"),
}
GROUPS = {
    "cifar10": {
        "animals": "bird,cat,deer,dog,frog,horse",
        "vehicles": "airplane,automobile,ship,truck",
    }
}


def digits_split(name: str) -> np.ndarray:
    """Row numbers of one part of the stored split of scikit-learn's digits."""
    stored = json.loads((files("instil") / "splits" / "digits.json").read_text())
    return np.arange(1797) if name == "all" else np.array(stored[name])


def _digits(split: str, source: str) -> Images:
    from sklearn.datasets import load_digits  # half a second to import

    bunch: Any = load_digits()
    rows = digits_split(split)
    pixels = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)  # grey levels 0 to 16
    return Images(
        torch.from_numpy(pixels)[:, None],
        torch.from_numpy(bunch.target[rows]).long(),
        tuple(str(digit) for digit in range(10)),
        source,
    )


def _mnist(split: str, source: str) -> Images:
    root = Path(os.environ.get("INSTIL_DATA", "data"))
    stem = "train" if split == "train" else "t10k"
    names = [f"{stem}-{kind}-ubyte.gz" for kind in KINDS]
    files = _one_or_two_below(root, names)
    if files is None:
        from torchvision.datasets import MNIST

        try:
            MNIST(root, download=True)
        except (RuntimeError, OSError) as error:
            raise InstilError(
                f"{source}: not below {root} and not downloaded ({' '.join(str(error).split())}); "
                "set INSTIL_DATA to the folder that holds MNIST/raw"
            ) from None
        files = [root / "MNIST" / "raw" / name for name in names]
    # idx format: a header of 16 bytes before the images, of 8 before the labels
    try:
        pixels, labels = (
            np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)
            for file, header in zip(files, (16, 8), strict=True)
        )
        pixels = pixels.reshape(len(labels), 1, 28, 28)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InstilError(f"{source}: {files[0].parent} holds no whole MNIST ({error})") from None
    return Images(
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
        source,
    )


def _mnist14(split: str, source: str) -> Images:
    images = _mnist("test", source)
    # Every fifth image is held out; the file is in no order, but its halves differ in difficulty.
    fifth = torch.arange(len(images)) % 5
    keep = {"all": fifth < 5, "train": fifth < 4, "held-out": fifth == 4, "extractor": fifth < 2}
    small = torch.nn.functional.avg_pool2d(images.pixels.float(), 2).round().to(torch.uint8)
    return replace(images, pixels=small).select(keep[split].nonzero()[:, 0])


def _one_or_two_below(root: Path, names: list[str]) -> list[Path] | None:
    """The files of these names in one folder, `MNIST/raw` or such, one or two levels down."""
    for first in (*root.glob(f"*/*/{names[0]}"), *root.glob(f"*/{names[0]}")):
        found = [first.with_name(name) for name in names]
        if all(file.exists() for file in found):
            return found
    return None


def _cifar10(split: str, source: str) -> Images:
    root = Path(os.environ.get("INSTIL_DATA", "data"))
    found = sorted(root.glob(f"cifar10*{split}.zip"))
    if not found:
        raise InstilError(
            f"{source}: no cifar10*{split}.zip below {root}; make one of class folders with images "
            "and set INSTIL_DATA to the folder that holds it"
        )
    return _load_path(found[0], source)


READERS = {"digits": _digits, "mnist": _mnist, "mnist14": _mnist14, "cifar10": _cifar10}


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
    """Some arrays of a `.npz`, those of `names` that it holds.

    Raises:
        InstilError: It is none, or an array declares more than the file has; nothing is unpickled.
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


def _filter(images: Images, text: str) -> Images:
    """Keep the classes that `text` names, such as `0-4,7` or `cat,dog`; they are renumbered."""
    if images.labels is None:
        raise InstilError(f"{images.source}: has no classes, so {text!r} selects nothing")
    keep: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if part in images.classes:
            keep.append(images.classes.index(part))
        elif dash and first in images.classes and last in images.classes:
            keep += range(images.classes.index(first), images.classes.index(last) + 1)
        else:
            raise InstilError(
                f"{images.source}: {part!r} is no class; classes are {', '.join(images.classes)}"
            )
    order = sorted(set(keep))
    rows = torch.isin(images.labels, torch.tensor(order)).nonzero()[:, 0]
    return replace(
        images,
        pixels=images.pixels[rows],
        labels=torch.searchsorted(torch.tensor(order), images.labels[rows]),
        classes=tuple(images.classes[number] for number in order),
    )
