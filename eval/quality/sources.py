"""Images to measure, made or read batch by batch: nothing holds all of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from instil.base import data
from instil.base.data import Images
from instil.base.data.pictures import Pictures
from instil.base.untrusted import is_dir, is_file

Batch = Tensor | list[Tensor]


@dataclass(frozen=True)
class Source:
    """Images that are made or read when they are asked for.

    Attributes:
        name: Description for reports.
        count: Number of images, N.
        read: Batches of uint8 images (B, C, H, W), one per range of image numbers; a list of images
            where their shapes differ.
        digest: Hash of the content, known before it is read; None of images that are made.
        labels: (N,) int64 classes, or None.
        classes: Name of each class.
        batch: Images that are made or read at once.
    """

    name: str
    count: int
    read: Callable[[Sequence[range]], Iterable[Batch]]
    digest: Callable[[], str] | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    batch: int = 512

    @property
    def parts(self) -> list[range]:
        """The numbers of all images, in batches."""
        starts = range(0, self.count, self.batch)
        return [range(start, min(start + self.batch, self.count)) for start in starts]


def of_images(images: Images | Tensor) -> Source:
    """A source of images that are in memory, (N, C, H, W) uint8."""
    if isinstance(images, Tensor):
        images = Images(images, None, (), "a tensor")

    def read(parts: Sequence[range]) -> Iterator[Tensor]:
        return (images.pixels[part.start : part.stop] for part in parts)

    about = (images.labels, images.classes)
    return Source(images.source, len(images), read, images.digest, *about)


def load(
    text: str, colour: bool = False, mixed: bool = False, workers: int = 0, batch: int = 64
) -> Source:
    """A source of the images that `text` describes, as `instil.base.data.load` does.

    Args:
        text: Folders and `.zip` are read as they are needed, all else at once.
        colour: Whether grey image files become RGB.
        mixed: Whether image files may differ in shape.
        workers: Processes that decode image files.
        batch: Image files decoded at once.

    Raises:
        InstilError: Nothing of the kind, or it cannot be read.
    """
    path = Path(text)
    if is_dir(text) or (is_file(text) and path.suffix == ".zip"):
        files = Pictures(path, text, colour)
        read = partial(files.batches, workers=workers, mixed=mixed)
        return Source(text, len(files), read, files.digest, *files.labels(), batch)
    return of_images(data.load(text))
