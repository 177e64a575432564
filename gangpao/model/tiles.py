"""Products with a frozen matrix that is not there as floats: rows are made some at a time, in a buffer that all matrices share.

A frozen base is kept small (bf16, 4 bits); computed is in what the processor is good at. Autograd would keep a float copy of every
matrix until the backward pass, because it keeps what a product was made of. Here the backward pass makes the rows again, and as the
matrix gets no gradient the input is not kept either.

What it gives up: each row is made twice a step. With hundreds of tokens at a time that is about a hundredth of the products.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

TILE_WEIGHTS = 1 << 18  # 1 MiB of float32: what the second cache of a core holds

_local = threading.local()


class Tiles(Protocol):
    """A frozen matrix [rows, cols]. `read` and `take` may be called from several threads."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

    def read(self, begin: int, end: int, like: Tensor) -> Tensor:
        """Rows [begin, end) in the dtype and on the device of `like`; good until this thread reads again, and not to be written."""
        ...

    def take(self, ids: Tensor) -> Tensor:
        """The rows of int64 ids [N], a new tensor [N, cols] in the dtype in which they are best kept, on the device of the ids."""
        ...


def scratch(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer [rows, cols] of this thread, whatever was in it; the next one of the same dtype and device is the same memory."""
    buffers: dict[tuple[torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("buffers", {})
    found = buffers.get((dtype, device))
    if found is None or found.numel() < rows * cols:
        with torch.inference_mode(False):  # made there, it could not be written anywhere else
            found = torch.empty(max(rows * cols, TILE_WEIGHTS), dtype=dtype, device=device)
        buffers[dtype, device] = found
    return found[: rows * cols].view(rows, cols)


def forget() -> None:
    """Give this thread's buffers back, which are as large as the largest tile so far."""
    _local.__dict__.pop("buffers", None)


def spans(rows: int, cols: int, weights: int | None = None) -> Iterator[tuple[int, int]]:
    """[begin, end) of tiles of about so many weights (TILE_WEIGHTS): 64 rows at least, and all of about the same size."""
    most = max(64, (weights or TILE_WEIGHTS) // cols)
    count = -(-rows // most)
    edges = [rows * i // count for i in range(count + 1)]
    yield from itertools.pairwise(edges)


def dense(tiles: Tiles) -> Tensor:
    """The whole matrix, a new float32 [rows, cols] in the memory of the processor."""
    out = torch.empty(tiles.rows, tiles.cols)
    for begin, end in spans(tiles.rows, tiles.cols):
        out[begin:end] = tiles.read(begin, end, out)
    return out


class Stored:
    """A matrix that is a tensor, of any floating dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def cols(self) -> int:
        return self.weight.shape[1]

    def read(self, begin: int, end: int, like: Tensor) -> Tensor:
        if self.weight.dtype == like.dtype:
            return self.weight[begin:end]
        return scratch(end - begin, self.cols, like.dtype, like.device).copy_(self.weight[begin:end])

    def take(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


def multiply(x_RC: Tensor, tiles: Tiles) -> Tensor:
    """x W^T, a new [R, rows]; no gradient is kept."""
    if isinstance(tiles, Stored) and tiles.weight.dtype == x_RC.dtype:
        return x_RC @ tiles.weight.T
    y = x_RC.new_empty(len(x_RC), tiles.rows)
    for begin, end in spans(tiles.rows, tiles.cols):
        torch.mm(x_RC, tiles.read(begin, end, x_RC).T, out=y[:, begin:end])
    return y


def multiply_back(dy_RO: Tensor, tiles: Tiles, onto: Tensor | None = None) -> Tensor:
    """dy W, [R, cols]: a new one, or added in place to `onto`."""
    dx = dy_RO.new_empty(len(dy_RO), tiles.cols) if onto is None else onto
    if isinstance(tiles, Stored) and tiles.weight.dtype == dy_RO.dtype:
        return dx.addmm_(dy_RO, tiles.weight, beta=0.0 if onto is None else 1.0)
    for begin, end in spans(tiles.rows, tiles.cols):
        first = onto is None and begin == 0
        dx.addmm_(dy_RO[:, begin:end], tiles.read(begin, end, dy_RO), beta=0.0 if first else 1.0)
    return dx


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles) -> Tensor:
        ctx.tiles = tiles
        return multiply(x.reshape(-1, tiles.cols), tiles).view(*x.shape[:-1], tiles.rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        tiles: Tiles = ctx.tiles
        dx = multiply_back(g.reshape(-1, tiles.rows), tiles)
        return dx.view(*g.shape[:-1], tiles.cols), None


def product(x: Tensor, tiles: Tiles) -> Tensor:
    """x @ W.T for a frozen W, in the dtype of x; the gradient is that of x alone."""
    return _Product.apply(x, tiles)  # type: ignore[no-any-return, no-untyped-call]
