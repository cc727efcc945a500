"""Features of images as they are made or read: pixels go, features and small copies stay."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from eval.quality.extractor import Extractor
from eval.quality.sources import Batch, Source
from instil.base import checkpoint
from instil.base.files import cache_folder
from instil.base.processes import is_main, on_main, shared_stream
from instil.base.runs.monitor import cache_may_fail

SMALL = 32  # side of the copies of images that stay


@dataclass(frozen=True)
class Features:
    """What stays of N images in the features of one extractor.

    Attributes:
        values: (N, d) float32.
        logits: (N, K) float32; K is 0 where the extractor is no classifier.
        small: (N, C, h, w) uint8, the images themselves up to 32x32, else averaged to that.
        shape: (C, H, W) of the first image.
        digest: Eight hexadecimal digits that change with any pixel.
    """

    values: Tensor
    logits: Tensor
    small: Tensor
    shape: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.values)


@torch.no_grad()
def extract(source: Source, extractors: Sequence[Extractor]) -> list[Features]:
    """Pass once through a source; processes share the batches.

    Returns:
        The features by each extractor.

    Raises:
        InstilError: An image cannot be read or does not fit an extractor.
    """

    def work(parts: Sequence[range]) -> Iterator[tuple[Any, ...]]:
        idle = not is_main() or len(parts) < 3
        with tqdm(total=source.count, desc=source.name, disable=idle or None, leave=False) as bar:
            for images in source.read(parts):
                bar.update(len(images))
                sha = hashlib.sha256(b"".join(each.numpy().tobytes() for each in images)).digest()
                found = [extractor(images) for extractor in extractors]
                yield found, shrunk(images), sha, tuple(images[0].shape)

    found, small, shas, shapes = zip(*shared_stream(source.parts, work), strict=True)
    digest = source.digest() if source.digest else hashlib.sha256(b"".join(shas)).hexdigest()[:8]
    rest = (torch.cat(small), shapes[0], digest)
    by_extractor = [map(torch.cat, zip(*each, strict=True)) for each in zip(*found, strict=True)]
    return [Features(values, logits, *rest) for values, logits in by_extractor]


def kept(key: str, make: Callable[[], Features]) -> Features:
    """Features in the user's cache under `key`, made and written where they are not there yet."""
    path = cache_folder() / f"features-{key}.safetensors"
    if on_main(path.exists):
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = checkpoint.read_tensors(path)
        return Features(**tensors, shape=tuple(about["shape"]), digest=about["digest"])
    features = make()
    about = {"shape": features.shape, "digest": features.digest}
    tensors = {name: getattr(features, name) for name in ("values", "logits", "small")}

    def write() -> None:
        with cache_may_fail():
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_tensors(path, tensors, {"about": json.dumps(about)})

    on_main(write)
    return features


def shrunk(images: Batch) -> Tensor:
    """Images as uint8 of at most 32x32."""
    if isinstance(images, list):
        return torch.cat([shrunk(image[None]) for image in images])
    sides = images.shape[2:]
    if max(sides) <= SMALL:
        return images
    size = [min(side, SMALL) for side in sides]
    return adaptive_avg_pool2d(images.float(), (size[0], size[1])).round().to(torch.uint8)
