"""Layers whose weights stay in their blocks: the rows that a product needs become floats, some at a time, and are gone after it.

The idea: a frozen matrix gets no gradient, so neither pass needs it whole. Forward and backward make the same rows again in a
buffer that all layers share (model/tiles.py); a GGUF file stays a memory map, and nothing of the base is in memory as floats.
A matrix in blocks is anything that follows `Tiles`: a GGUF tensor (`Blocks`) or NF4 (nf4.py).

What it gives up: on a card, blocks of GGUF are turned into floats by the processor and go over the bus.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gangpao import kernels
from gangpao.formats.blocks import BY_NAME
from gangpao.model.layers import Linear
from gangpao.model.tiles import Tiles, dense, product, scratch

Bytes = npt.NDArray[np.uint8]
Order = npt.NDArray[np.int32]


class Blocks:
    """A GGUF tensor [rows, cols]: its bytes, uint8 [rows, row bytes] (a view of the file will do), and the name of their type.

    order: row i is row order[i] of the tensor; None: as they lie. Raises ValueError where bytes and shape do not belong together.
    """

    def __init__(self, raw: Bytes, kind: str, cols: int, order: Order | None = None) -> None:
        block = BY_NAME[kind]
        if raw.ndim != 2 or cols % block.block_size or raw.shape[1] != block.row_bytes(cols):
            raise ValueError(f"{kind}: bytes {raw.shape} are not rows of {cols} weights")
        if order is not None and len(order) != len(raw):
            raise ValueError(f"an order of {len(order)} rows for a tensor of {len(raw)}")
        self.raw, self.kind, self.order = raw, kind, order
        self.rows, self.cols = len(raw), cols

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return self.raw.nbytes

    def read(self, begin: int, end: int, like: Tensor) -> Tensor:
        """Rows [begin, end) as floats; see Tiles."""
        out = scratch(end - begin, self.cols, torch.float32, torch.device("cpu"))
        self._write(out, begin, end, self.order)
        if like.dtype != out.dtype:
            out = scratch(end - begin, self.cols, like.dtype, out.device).copy_(out)
        return out.to(like.device)

    def take(self, ids: Tensor) -> Tensor:
        """Rows of ids [N], float32; each that occurs is made once."""
        wanted, place = torch.unique(ids.reshape(-1), return_inverse=True)
        at = wanted.cpu().numpy()
        if len(at) and not 0 <= at[0] <= at[-1] < self.rows:
            raise IndexError(f"ids from {at[0]} to {at[-1]}, and there are {self.rows} rows")
        order = (at if self.order is None else self.order[at]).astype(np.int32)
        out = torch.empty(len(at), self.cols)
        self._write(out, 0, len(at), order)
        return out.to(ids.device)[place].view(*ids.shape, self.cols)

    def _write(self, out: Tensor, begin: int, end: int, order: Order | None) -> None:
        # A lane has one thread, and other lanes would want the pool at the same time.
        parallel = torch.get_num_threads() > 1
        kernels.dequantize(self.raw, self.kind, self.rows, self.cols, out.numpy(), begin, end, order, parallel)


class QuantizedLinear(Linear):
    """y = x W^T + bias for a frozen W that stays in its blocks, and a frozen bias. There is no `weight`; `dense()` makes one."""

    def __init__(self, tiles: Tiles, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.tiles = tiles.cols, tiles.rows, tiles
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = product(x, self.tiles)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def dense(self) -> Tensor:
        """The weights, float32 [out_features, in_features]."""
        return dense(self.tiles)

    def frozen_tiles(self) -> Tiles | None:
        """See Linear."""
        return self.tiles if type(self) is QuantizedLinear and self.bias is None else None

    def matrix(self) -> Tiles:
        """See Linear."""
        return self.tiles


class QuantizedEmbedding(nn.Embedding):
    """Rows of a frozen table that stays in its blocks, float32 [..., D]. There is no `weight`; `dense()` makes one."""

    def __init__(self, tiles: Tiles) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.tiles = tiles.rows, tiles.cols, tiles
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False

    def forward(self, ids: Tensor) -> Tensor:
        return self.tiles.take(ids)

    def dense(self) -> Tensor:
        """The table, float32 [num_embeddings, embedding_dim]."""
        return dense(self.tiles)
