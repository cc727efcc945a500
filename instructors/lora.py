"""Low-rank adapters as a recipe section; `instructors.low_rank` carries it out."""

from typing import Annotated

from pydantic import Field, PositiveInt

from instil.base.config import Config


class Lora(Config):
    """Adapters beside frozen weights, W + alpha / rank B A, with B = 0 at the start.

    Attributes:
        rank: Rank of the product B A.
        alpha: Strength of the adapters, divided by the rank; null for the rank, a factor of 1.
        targets: Names of layers, or the ends of names such as `to_q`; null for every linear layer
            and every convolution of one group.

    Source:
        Hu et al. 2021, arXiv 2106.09685.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
