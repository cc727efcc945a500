"""Image files that anybody may have written, decoded when they are asked for."""

import hashlib
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from instil.base.errors import InstilError
from instil.base.runs.monitor import note
from instil.base.untrusted import is_file

# Of one image and its file: 4096x4096, and more bytes than those take without compression.
MOST_PIXELS, LARGEST_FILE = 1 << 24, 1 << 27
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, which it clips instead of scaling
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


def open_packed(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a file of an archive.

    Raises:
        ValueError: It is packed by LZMA or BZIP2, which take as much memory as the file asks for.
    """
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("packed by another method than deflate; pack it again")
    return archive.open(info)


class Pictures(Dataset[tuple[Tensor, str] | InstilError]):
    """The image files of a folder or a `.zip`, sorted by name.

    Item k is the pixels of file k, uint8 (C, H, W), and a remark on how they were converted, which
    is empty as a rule; of an unreadable file it is the error, since a worker cannot raise one.

    Args:
        path: The folder or `.zip`.
        source: Its name in messages.
        colour: Whether grey images become RGB too.

    Raises:
        InstilError: It holds no images, or is no `.zip`.
    """

    def __init__(self, path: Path, source: str, colour: bool = False) -> None:
        self.path, self.source, self.colour = path, source, colour
        self.archive: zipfile.ZipFile | None = None
        if path.is_dir():
            files = (file for file in path.rglob("*") if is_file(file))
            names = [file.relative_to(path).as_posix() for file in files]
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
            except Exception as error:  # a broken directory raises half a dozen kinds of error
                raise InstilError(f"{source}: cannot be read ({error})") from None
        self.names = sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES)
        if not self.names:
            raise InstilError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, str] | InstilError:
        name = self.names[index]
        try:
            return _decode(self._content(name), self.colour)
        except Exception as error:  # Pillow's plugins and zipfile raise a dozen kinds
            return InstilError(f"{self.source}: {name} is not a readable image ({error})")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"archive": None}  # each worker opens its own

    def _content(self, name: str) -> bytes:
        if self.path.is_dir():
            file: IO[bytes] = (self.path / name).open("rb")
        else:
            self.archive = self.archive or zipfile.ZipFile(self.path)
            file = open_packed(self.archive, name)
        with file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE:,} bytes")
        return content

    def labels(self) -> tuple[Tensor | None, tuple[str, ...]]:
        """Each file's folder as its class, (N,) int64, and the names; no labels in one folder."""
        folders = [PurePosixPath(name).parent.as_posix() for name in self.names]
        return number_classes(folders if len(set(folders)) > 1 else None)

    def digest(self) -> str:
        """Eight hexadecimal digits that change with any file's name or content."""
        sha = hashlib.sha256()
        for name in self.names:
            sha.update(name.encode() + hashlib.sha256(self._content(name)).digest())
        return sha.hexdigest()[:8]

    def batches(
        self, parts: Sequence[range], workers: int = 0, mixed: bool = False
    ) -> Iterator[Tensor | list[Tensor]]:
        """Decode the files of each part; says once how each kind of unusual file is converted.

        Args:
            parts: Numbers of files.
            workers: Processes that decode; 0 decodes in this one.
            mixed: Whether images of several shapes are fine.

        Yields:
            (len(part), C, H, W) uint8, or a list of images where their shapes differ.

        Raises:
            InstilError: A file cannot be read, or has another shape than the first.
        """
        said, first = set[str](), ("", torch.Size())
        loader = DataLoader(
            self, batch_sampler=[list(p) for p in parts], num_workers=workers, collate_fn=list
        )
        for part, items in zip(parts, loader, strict=True):
            images = []
            for number, item in zip(part, items, strict=True):
                if isinstance(item, InstilError):
                    raise item
                images.append(item[0])
                first = first if first[0] else (self.names[number], item[0].shape)
                if not mixed and item[0].shape != first[1]:
                    raise InstilError(
                        f"{self.source}: {self.names[number]} has the shape "
                        f"{tuple(item[0].shape)}, {first[0]} has {tuple(first[1])}; make all "
                        "images one size and one mode first"
                    )
                if item[1] and item[1] not in said:
                    note(f"{self.source}: {self.names[number]} and any like it: {item[1]}")
                    said.add(item[1])
            yield torch.stack(images) if len({i.shape for i in images}) == 1 else images


def number_classes(names: list[str] | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """Classes by name as numbers (N,) int64, with the sorted names; None has no classes."""
    if names is None:
        return None, ()
    classes = sorted(set(names), key=_natural)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[name] for name in names])
    return labels, tuple(name.rsplit("/", 1)[-1] for name in classes)


def _decode(content: bytes, colour: bool) -> tuple[Tensor, str]:
    """One image, grey or RGB, of a size that is held against its file's before it is decoded."""
    with Image.open(BytesIO(content)) as image:
        if math.prod(image.size) > MOST_PIXELS:
            width, height = image.size
            raise ValueError(f"{width}x{height} pixels are too many; make it smaller")
        if image.mode.startswith(DEEP):
            raise ValueError("more than 8 bits a channel; save it with 8")
        remarks = [] if image.mode in ("L", "RGB") else [f"{image.mode} converted to RGB by Pillow"]
        if image.getexif().get(ORIENTATION, 1) != 1:
            remarks.append("EXIF rotation ignored")
        keep = image.mode == "L" and not colour
        pixels = torch.from_numpy(np.array(image if keep else image.convert("RGB")))
    return pixels[None] if keep else pixels.permute(2, 0, 1).contiguous(), ", ".join(remarks)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which 2 comes before 10."""
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name) if p)
