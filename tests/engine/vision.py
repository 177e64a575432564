"""Small random towers of every row, their files, and pieces of pictures for them."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from gangpao.deploy import mmproj
from gangpao.formats.vision import VISION
from gangpao.model.vision.tower import VisionTower


@dataclass(frozen=True)
class Patches:
    values: np.ndarray
    grid: tuple[int, int]


def small(name, **encoder):
    """A row with small numbers: 3 layers of two heads of 36, patches of 4 x 4, rows of the language model 64 wide."""
    row = VISION[name]
    numbers = {"layers": 3, "hidden_size": 72, "heads": 2, "intermediate_size": 136, "patch_size": 4} | encoder
    if row.encoder.merge_after is not None:
        numbers |= {"merge_after": 2}
    multiple = 4 * row.slicing.multiple // row.encoder.patch_size
    return replace(
        row,
        encoder=replace(row.encoder, **numbers),
        merger=replace(row.merger, head_dim=32, queries=16),
        slicing=replace(row.slicing, multiple=multiple),
    )


@cache
def tower(vision, seed=0, width=64):
    """With weights that make every tensor matter."""
    out = VisionTower.build(vision, width, seed=seed)
    with torch.no_grad():
        for i, parameter in enumerate(out.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * seed + i))
            parameter.add_(noise * 0.08)
    return out.eval()


def piece(vision, grid, seed=0):
    values = np.random.default_rng(seed).normal(size=(grid[0] * grid[1], 3 * vision.encoder.patch_size**2))
    return Patches(values.astype(np.float32), grid)


def by_torch(vision, one):
    with torch.no_grad():
        return tower(vision)([one])[0].numpy()


def written(folder, vision, kind="F32"):
    path = folder / f"mmproj-{vision.name}-{kind}.gguf"
    if not path.exists():
        mmproj.write(vision, tower(vision).state_dict(), path, kind)
    return path
