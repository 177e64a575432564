"""Pieces of pictures for tests of sight: random pixels of a size, cut by the model's own rule."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gangpao.formats.vision import VISION, Encoder, VisionModel


@dataclass(frozen=True)
class Piece:
    """As images/slices.py makes it."""

    values: NDArray[np.float32]
    grid: tuple[int, int]


def piece(rows: int, columns: int, patch: int = 14, seed: int = 0) -> Piece:
    """Random patches of a grid."""
    rng = np.random.default_rng([seed, rows, columns])
    return Piece(rng.standard_normal((rows * columns, 3 * patch * patch)).astype(np.float32), (rows, columns))


SMALL = {"layers": 3, "hidden_size": 32, "heads": 2, "intermediate_size": 48}


def small(name: str, **changes: object) -> VisionModel:
    """A row with an encoder for tests: 3 layers of 32, and what else is asked for (fields of Encoder)."""
    row = VISION[name]
    merge = {"merge_after": 2} if row.encoder.merge_after else {}
    shape: Encoder = replace(row.encoder, **(SMALL | merge | changes))  # type: ignore[arg-type]
    return replace(row, encoder=shape, merger=replace(row.merger, head_dim=16))
