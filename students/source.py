"""A generator somebody already has, as a recipe section; `students.load` carries it out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from instil.base.config import Config
from instil.base.config.fields import Location


def _listed(value: Any) -> Any:
    """One value as a tuple of it, and `16,1,1` as a tuple of three."""
    if isinstance(value, str):
        words = (word.strip() for word in value.split(","))
        return tuple(int(word) if word.isdecimal() else word for word in words)
    return (value,) if isinstance(value, int | float) else value


Listed = BeforeValidator(_listed)
Shape = Annotated[tuple[PositiveInt, ...], Listed, Field(min_length=1)]


class Call(Config):
    """How a network is called and what it returns; None is found by trying.

    Attributes:
        latent: Shape of z.
        prior: Law of z: standard normal, or uniform on [-1, 1].
        truncation: Factor on z, which is then a normal cut off at two standard deviations. A
            network with an argument `truncation` is given it as well.
        listed: Whether z is passed in a list.
        classes: Number of class labels; 0 if unconditional.
        labels: Second argument of the network: class numbers (`index`), vectors of zeros and a one
            (`one_hot`), or the output of the network's own module of this name for class numbers.
        options: Further keyword arguments of every call, such as `truncation_psi: 0.7`.
        output: Position or key of the images among several outputs.
        layout: Order of the axes of an image: channels first or last.
        shape: Shape of one image, channels first, where the network returns another one.
        range: Black and white of the network's images; scaled to [-1, 1].
    """

    latent: Shape | None = None
    prior: Literal["normal", "uniform"] = "normal"
    truncation: PositiveFloat | None = None
    listed: bool | None = None
    classes: NonNegativeInt | None = None
    labels: Annotated[str, Field(pattern=r"^[\w.]+$")] | None = None
    options: Mapping[str, Any] = {}
    output: int | str | None = None
    layout: Literal["chw", "hwc"] | None = None
    shape: Shape | None = None
    range: Annotated[tuple[float, float], Listed] = (-1.0, 1.0)


class Source(Call):
    """Where a generator's weights lie, the code that makes it, and how it is called.

    Attributes:
        weights: A `.safetensors`, any file of `torch.save`, a StyleGAN2 `.pkl`, a folder that a run
            or `python -m students` has written, or an embedded name.
        factory: `package.module:callable` or `path/to/file.py:callable` that makes the network; a
            folder of ours or a StyleGAN2 `.pkl` needs none. It is run: name code you trust.
        arguments: Keyword arguments of the factory.
        key: Place of the network in a file of several, such as `g_ema` or `models.G`.
        ignore: Names of tensors, `*` allowed, that may be missing, left over, or of another shape.
    """

    weights: Location
    factory: Annotated[str, Field(pattern=r"^.+[:.]\w+$")] | None = None
    arguments: Mapping[str, Any] = {}
    key: str | None = None
    ignore: Annotated[tuple[str, ...], Listed] = ()
