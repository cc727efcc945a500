"""Broadcasting one number per sample over the axes of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, …, 1), to multiply `like` (B, *shape)."""
    return values.view(-1, *(1,) * (like.dim() - 1))
