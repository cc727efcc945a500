"""Source and target of a latent space, split into training and held-out images."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.image_sets import check_samples, compare_scales, refuse_shared, some
from instil.base.data import Images
from instil.base.draws import Draws
from instil.base.errors import InstilError


@dataclass(frozen=True)
class Domains:
    """Two sets of different images, a third of each held out.

    Attributes:
        source: (N, C, H, W) uint8, all different images of the source.
        source_parts: Training and held-out images of the source.
        target_parts: Training and held-out images of the target.
        facts: Names, digests and numbers of the images, by `source` and `target`.
    """

    source: Tensor
    source_parts: tuple[Tensor, Tensor]
    target_parts: tuple[Tensor, Tensor]
    facts: dict[str, Any]

    @classmethod
    def of(cls, source: Images, target: Images, seed: int) -> "Domains":
        """Drop repeated images, refuse sets that allow no conclusion, and split.

        Raises:
            InstilError: Shapes differ, images are shared, or there are fewer than six different
                ones on either side.
        """
        if source.shape != target.shape:
            raise InstilError(
                f"{source.source} has images of the shape {source.shape}, {target.source} of "
                f"{target.shape}; make them one size and mode first"
            )
        refuse_shared(source.pixels, target.pixels, source.source, target.source)
        facts, sets = {}, []
        for role, images in (("source", source), ("target", target)):
            pixels = some(images, None, seed).pixels
            if len(pixels) < 6:
                raise InstilError(
                    f"{images.source}: {len(pixels)} different images; expected 6 or more, since a "
                    "third of them is held out"
                )
            check_samples(pixels)
            order = Draws.of_range(seed, 0, 0, len(pixels)).uniform(role).argsort()
            cut = len(pixels) // 3
            sets.append((pixels, pixels[order[cut:]], pixels[order[:cut]]))
            facts[role] = {
                "images": images.source,
                "digest": images.digest(),
                "train": len(pixels) - cut,
                "held_out": cut,
            }
        compare_scales(source.pixels, target.pixels, source.source, target.source)
        (whole, *first), (_, *second) = sets
        return cls(whole, (first[0], first[1]), (second[0], second[1]), facts)
