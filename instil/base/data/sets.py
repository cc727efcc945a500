"""Images with labels, from a one-line description.

    digits                 scikit-learn's digits, the stored training split
    digits:held-out        the other part of it; digits:all is both
    digits:0-4             classes 0 to 4 of the training split; digits:held-out:0-4,7 works too
    mnist, mnist:test      torchvision's MNIST below $INSTIL_DATA
    mnist14                14x14, means of 2x2 pixels of four fifths of MNIST's test images;
                           mnist14:held-out is every fifth
    cifar10, cifar10:test  a local copy below $INSTIL_DATA, cifar10*train.zip and cifar10*test.zip
    cifar10:animals        its classes bird to horse; cifar10:vehicles is the rest
    photos/, photos.zip    a folder or zip of images, its sub-folders as classes
    photos.npz             arrays `images` (N, H, W[, C]) uint8 and, with classes, `labels` (N,)

Everything is uint8 in memory and float32 in [-1, 1] in a network.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instil.base.data.files import KINDS, load_path
from instil.base.data.images import Images
from instil.base.errors import InstilError
from instil.base.untrusted import is_dir, is_file


def load(source: str) -> Images:
    """Read the images that `source` describes (see the module docstring).

    Raises:
        InstilError: The description is not understood, a file is missing or unreadable, sizes are
            mixed, or a class filter names no class.
    """
    if is_file(source) or is_dir(source):
        return load_path(Path(source), source)
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
    images = reader(split, source) if reader else load_path(Path(name), source)
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
    stored = json.loads((files("instil") / "base" / "data" / "splits" / "digits.json").read_text())
    return np.arange(1797) if name == "all" else np.array(stored[name])


def _digits(split: str, source: str) -> Images:
    from sklearn.datasets import load_digits  # half a second to import

    bunch: Any = load_digits()
    rows = digits_split(split)
    pixels = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)  # grey levels 0 to 16
    return _ten_digits(pixels[:, None], bunch.target[rows], source)


def _ten_digits(pixels: np.ndarray, labels: np.ndarray, source: str) -> Images:
    """Images (N, 1, H, W) of the digits 0 to 9, and their labels (N,)."""
    numbers = torch.from_numpy(labels.astype(np.int64))
    return Images(torch.from_numpy(pixels), numbers, tuple("0123456789"), source)


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
    return _ten_digits(pixels.copy(), labels, source)


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
        files = [first.with_name(name) for name in names]
        if all(file.exists() for file in files):
            return files
    return None


def _cifar10(split: str, source: str) -> Images:
    root = Path(os.environ.get("INSTIL_DATA", "data"))
    found = sorted(root.glob(f"cifar10*{split}.zip"))
    if not found:
        raise InstilError(
            f"{source}: no cifar10*{split}.zip below {root}; make one of class folders with images "
            "and set INSTIL_DATA to the folder that holds it"
        )
    return load_path(found[0], source)


READERS = {"digits": _digits, "mnist": _mnist, "mnist14": _mnist14, "cifar10": _cifar10}


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
