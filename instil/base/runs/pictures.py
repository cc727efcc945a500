"""Images laid out in sheets and written as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from instil.base.files import replacing

if TYPE_CHECKING:  # takes a second to import
    from matplotlib.figure import Figure


def sheet(pixels: Tensor, columns: int) -> Tensor:
    """Lay out uint8 images (N, C, H, W), C 1 or 3, row by row as one (3, height, width)."""
    from torchvision.utils import make_grid  # a second to import

    if len(pixels) == 1:  # which make_grid gives no frame
        return pixels[0].expand(3, -1, -1)
    return make_grid(pixels, nrow=columns, padding=1, pad_value=128)[:, 1:-1, 1:-1]


def save_picture(sheets: Sequence[Tensor], path: Path, zoom: int = 1) -> None:
    """Write sheets of one height side by side as a PNG, enlarged `zoom` times."""
    gap = torch.full((3, sheets[0].shape[1], 4), 255, dtype=torch.uint8)
    parts = [part for each in sheets for part in (gap, each)][1:]
    picture = Image.fromarray(torch.cat(parts, dim=2).permute(1, 2, 0).numpy())
    size = (picture.width * zoom, picture.height * zoom)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.resize(size, Image.Resampling.NEAREST).save(partial, format="PNG")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, or what the path's suffix says."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:] or "png")
