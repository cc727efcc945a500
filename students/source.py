"""A generator somebody already has, as a recipe section; `students.load` carries it out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from instil.base.config import Config
from instil.base.config.fields import Location


class Source(Config):
    """Where a generator's weights lie and how it is called; None is inferred from the network.

    Attributes:
        weights: A `.safetensors`, a `.pt` of plain tensors, a StyleGAN2(-ADA) `.pkl`, a folder that
            a run or `python -m students` has written, or an embedded name.
        factory: `package.module:callable` that makes the network the weights are of; a folder or a
            `.pkl` of StyleGAN2 needs none. It is called, so it must be code you trust.
        arguments: Of the factory.
        key: Of the network among several in one file; `G_ema` in a `.pkl`.
        ignore: Names of tensors, `*` allowed, that may be missing, left over, or of another shape.
        latent: Shape of z.
        classes: Number of class labels; 0 if unconditional.
        labels: What the network takes: class numbers, or vectors of zeros and a one.
        range: Of the network's images, black and white; scaled to [-1, 1].
    """

    weights: Location
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    arguments: Mapping[str, Any] = {}
    key: str | None = None
    ignore: tuple[str, ...] = ()
    latent: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    classes: NonNegativeInt | None = None
    labels: Literal["index", "one_hot"] = "index"
    range: tuple[float, float] = (-1.0, 1.0)
