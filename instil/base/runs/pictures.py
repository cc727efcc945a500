"""Images laid out in sheets and written as PNG."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from instil.base.files import replacing


def sheet(pixels: Tensor, columns: int) -> Tensor:
    """Lay out uint8 images (N, C, H, W) row by row as one (3, height, width)."""
    count, channels, height, width = pixels.shape
    if channels not in (1, 3):
        raise ValueError(f"pictures need 1 or 3 channels, got {channels}")
    rows = -(-count // columns)
    canvas = pixels.new_full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 128)
    for number, image in enumerate(pixels):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    return canvas.expand(3, -1, -1)


def save_picture(sheets: Sequence[Tensor], path: Path, zoom: int = 1) -> None:
    """Write sheets of one height side by side as a PNG, enlarged `zoom` times."""
    gap = torch.full((3, sheets[0].shape[1], 4), 255, dtype=torch.uint8)
    parts = [part for each in sheets for part in (gap, each)][1:]
    picture = Image.fromarray(torch.cat(parts, dim=2).permute(1, 2, 0).numpy())
    size = (picture.width * zoom, picture.height * zoom)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.resize(size, Image.Resampling.NEAREST).save(partial, format="PNG")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, or what the path's suffix says."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:] or "png")
