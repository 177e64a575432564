"""A learned table of positions, brought to the grid of a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao.formats.vision import Stretch
from gangpao.formats.vision.positions import nearest

# torch's bicubic has a = -0.5 with antialias (timm, Pillow) and a = -0.75 without, also where it enlarges.
_INTERPOLATIONS: dict[Stretch, tuple[str, bool]] = {
    "bicubic_antialias": ("bicubic", True),
    "bicubic": ("bicubic", False),
    "bilinear_antialias": ("bilinear", True),
}


def stretched(table_PD: Tensor, size: tuple[int, int], grid: tuple[int, int], how: Stretch) -> Tensor:
    """A table of `size` (rows, columns) at a grid: [rows * columns, D], row by row, in the table's dtype, with its gradient."""
    if size == grid:
        return table_PD
    if how == "nearest":
        rows, columns = (torch.from_numpy(nearest(n, m)) for n, m in zip(size, grid, strict=True))
        return table_PD[(rows[:, None] * size[1] + columns).flatten().to(table_PD.device)]
    mode, antialias = _INTERPOLATIONS[how]
    picture = table_PD.float().view(*size, -1).permute(2, 0, 1)[None]
    if mode == "bicubic" or antialias:
        picture = F.interpolate(picture, size=grid, mode=mode, align_corners=False, antialias=antialias)
    return picture[0].permute(1, 2, 0).reshape(grid[0] * grid[1], -1).to(table_PD.dtype)
