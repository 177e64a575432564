"""An mmproj file ready to run: pieces of pictures go in, rows in the place of token embeddings come out.

Sight.open(path)     reads, checks and packs
Sight.encode(piece)  rows [tokens, text_size]; between its steps others have the kernels' threads
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.transformer import ONE_AT_A_TIME
from gangpao.engine.vision import encoder, mergers
from gangpao.engine.vision.encoder import CHUNK, Patches
from gangpao.engine.vision.mmproj import read_vision
from gangpao.engine.vision.weights import Tensors
from gangpao.formats.gguf import GGUF
from gangpao.formats.vision import VisionModel

Floats = npt.NDArray[np.float32]

MAX_PATCHES = 16_384  # of one piece; attention over them takes 8 minutes of a core, their states 270 MB
# A lock that is given back and taken at once is seldom seen by those who wait for it.
_PAUSE = 1e-4


class Sight:
    """An encoder with its merger. vision: its row, with the numbers of the file; nbytes: packed weights."""

    def __init__(self, vision: VisionModel, weights: encoder.Weights, merger: mergers.Merger, nbytes: int) -> None:
        self.vision, self.nbytes = vision, nbytes
        self.text_size = merger.text_size
        self._weights, self._merger = weights, merger

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, float32: bool = False, int8: bool = False) -> Sight:
        """The file, packed; it is closed again. float32: matrices as such, whatever the file has. int8: matrices of floats rounded
        to Q8_0, which is faster and takes half the memory of F16 (docs/vision.md says what it loses).

        Raises ModelFileError for what is damaged, of a kind that we have no row of, or not an mmproj file at all.
        """
        with GGUF.open(path) as gguf:
            vision = read_vision(gguf)
            tensors = Tensors(gguf, float32=float32, int8=int8)
            weights = encoder.load(tensors, vision.encoder)
            merger = mergers.load(tensors, vision)
            tensors.check_all_taken(vision.merger.kind)
            return cls(vision, weights, merger, tensors.arena.nbytes + weights.table.nbytes)

    def tokens(self, grid: tuple[int, int]) -> int:
        """Rows of a piece of so many (rows, columns) of patches."""
        halved = self.vision.encoder.merge_after is not None
        return self._merger.tokens((grid[0] // 2, grid[1] // 2) if halved else grid)

    def encode(self, piece: Patches, check: Callable[[], None] = lambda: None) -> Floats:
        """Rows [tokens, text_size]. check: called between layers; what it raises ends the work.

        Raises ValueError for values of another shape than the grid says, for odd grids, and for too many patches.
        """
        if piece.grid[0] * piece.grid[1] > MAX_PATCHES:
            raise ValueError(
                f"a piece of {piece.grid[0]} x {piece.grid[1]} patches is too large; at most {MAX_PATCHES} are encoded"
            )
        steps = self._steps(piece)
        while True:
            check()
            with ONE_AT_A_TIME:
                try:
                    next(steps)
                except StopIteration as done:
                    rows: Floats = done.value
                    return rows
            time.sleep(_PAUSE)

    def _steps(self, piece: Patches) -> Generator[None, None, Floats]:
        states, grid = yield from encoder.encode(self._weights, self.vision.encoder, piece)
        rows = yield from self._merger(states, grid)
        return rows.numpy().copy()


def work_bytes(vision: VisionModel, text_size: int, patches: int | None = None) -> int:
    """Memory that encoding one piece takes for a while. patches: of the piece; as many as pieces of this model usually have at most
    if not given."""
    e = vision.encoder
    if patches is None:
        # A piece has about resolution ** 2 pixels, and rounding its sides makes it a little larger.
        patches = (vision.slicing.resolution // e.patch_size + 2) ** 2
    n, size, chunk = patches + e.prefix_tokens, e.hidden_size, min(CHUNK, patches + e.prefix_tokens)
    layers = 5 * size * n  # states, q, k, v, what is attended to
    if e.merge_after is not None:
        layers += 9 * size * n  # the same again for windows, and four side by side
    head = -(-size // e.heads // 16) * 16
    layers += chunk * (3 * e.intermediate_size + 4 * size) + 2 * (n + kernels.PAGE) * head
    merging = size * n + 3 * text_size * n if vision.merger.kind == "resampler" else 3 * size * n + 2 * text_size * n
    return 4 * max(layers, merging)


def weight_bytes(gguf: GGUF, *, float32: bool = False, int8: bool = False) -> int:
    """Bytes of the packed weights of an open mmproj file, from its header alone. float32, int8: as in Sight.open."""
    total = 0
    for info in gguf.tensors.values():
        rows, cols = info.shape[0], int(np.prod(info.shape[1:]))
        if info.name == "v.position_embd.weight":
            total += 4 * rows * cols
        elif len(info.shape) > 1 and "resampler.pos_embed" not in info.name:
            kind = info.type
            if int8 and kind in ("F32", "F16", "BF16"):
                kind = "Q8_0" if cols > 32 else kind
                cols += -cols % 32
            total += kernels.packed_bytes("F32" if float32 else kind, rows, cols)
    return total
