"""Positions of packed rows with pictures, for a model that has a picture on one canvas (MiniCPM-V 4.7): those of its prompts.

Every document of a row begins anew, as its positions do without pictures.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gangpao.images.canvas import Crop, MarkIds, Positions, canvas
from gangpao.tune.pictures.table import PictureTable

Ids = npt.NDArray[np.int64]


def positions(ids: Ids, documents: Ids | None, table: PictureTable, marks: MarkIds) -> Positions:
    """int64 [3, B, T]: time, row and column of ids [B, T]. documents [B, T]: the document of each id; None: a row is one.

    Raises ValueError for a picture that is cut off.
    """
    out = np.empty((3, *ids.shape), np.int64)
    for b, row in enumerate(ids):
        borders = [] if documents is None else (np.flatnonzero(np.diff(documents[b])) + 1).tolist()
        begin = 0
        for end in [*borders, len(row)]:
            piece = row[begin:end]
            out[:, b, begin:end] = canvas(piece.tolist(), _crops(piece, table), marks)
            begin = end
    return out


def _crops(ids: Ids, table: PictureTable) -> list[Crop]:
    """The pieces of pictures among ids [T], where their first rows stand."""
    places = np.flatnonzero(ids >= table.vocab_size)
    rows = ids[places] - table.vocab_size
    out = []
    for place, row, number in zip(places.tolist(), rows.tolist(), table.numbers(rows).tolist(), strict=True):
        entry = table.entries[number]
        starts = np.cumsum([entry.first, *entry.plan.tokens]).tolist()
        if row in starts:
            index = starts.index(row)
            high, wide = entry.plan.grids[index]
            side = math.isqrt(high * wide // entry.plan.tokens[index])
            out.append(Crop(place, high // side, wide // side))
    return out
