"""All layers in order: each matrix rounded behind the ones before it, kept, and the streams led on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.rounding.feedback import damped, descend, errors, feed_back, plain
from gangpao.compress.rounding.grids import GRIDS, Grid, Held, packed
from gangpao.compress.rounding.layers import Streams, Sums, Walk, dense_weight
from gangpao.compress.rounding.store import Store
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.architectures import EMBEDDING, HEAD, TENSORS
from gangpao.formats.blocks import dequantize
from gangpao.model.transformer import Block, Transformer
from gangpao.progress import Progress

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Order = npt.NDArray[np.int64]
PlainBytes = Callable[[str, Floats, str], Bytes]  # tensor, rows, type
_ROWS = 4096  # of a matrix at once; a head has 150,000


def rounded_matrix(weights: Tensor, sums: Sums, grid: Grid, config: RoundingConfig, residual_scale: float) -> Held:
    """A matrix [R, C] on its grid, with the inputs in view: never a row with a larger error than plain rounding leaves."""
    columns = weights.shape[1]
    shrink = columns / (columns + sums.tokens) if config.shrink is None else config.shrink
    hessian = damped(sums.hessian, config.damping, shrink)
    aim = sums.aim(weights, config.share, hessian, residual_scale) if config.share else weights
    held = Held.empty(grid, *weights.shape)
    for begin in range(0, len(weights), _ROWS):
        at = slice(begin, begin + _ROWS)
        held.put(at, _rows(aim[at], hessian, grid, config.passes))
    return held


def _rows(aim: Tensor, hessian: Tensor, grid: Grid, passes: int) -> Held:
    held = feed_back(aim, hessian, grid)
    alone = plain(aim, hessian.diagonal(), grid)
    worse = errors(aim, held.dense(), hessian) > errors(aim, alone.dense(), hessian)
    if worse.any():
        held.put(worse, alone.rows(worse))
    descend(held, aim, hessian, passes)
    return held


class Sweep:
    """The layers of a model into their types. plain: the bytes of what has no grid, or is no matrix in a layer.
    order: of a tensor's rows in the file, None where they stay. copied: tensors that nobody rounds."""

    def __init__(
        self, model: Transformer, types: Mapping[str, str], config: RoundingConfig, store: Store, plain: PlainBytes,
        order: Callable[[str], Order | None], copied: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.model, self.types, self.config, self.store = model, types, config, store
        self.plain, self.order, self.copied = plain, order, copied

    @torch.no_grad()
    def run(self, ids: Tensor, progress: Progress) -> None:
        """Go on behind the layers that are done. ids [N, T]."""
        layers = self.model.model.layers
        done = self.store.layers
        progress.start("rounding", len(layers), done)
        streams = self.store.streams() if done else self._begin(ids)
        for number in range(done, len(layers)):
            layer = layers[number]
            assert isinstance(layer, Block)
            walk = Walk(self.model, layer, streams, batch=self.config.batch)
            streams = walk.run(partial(self._matrix, f"model.layers.{number}."))
            if number + 1 == len(layers):
                self._head(streams)
            self.store.layer_done(number + 1, streams)
            progress.update(number + 1)

    def _begin(self, ids: Tensor) -> Streams:
        """Hidden states before the first layer, from the float embedding and from the rounded one."""
        exact = self.model.model.embed_tokens(ids).float() * self.model.config.embedding_scale
        wanted, place = torch.unique(ids.reshape(-1), return_inverse=True)
        name = TENSORS[EMBEDDING]
        rows = self.model.model.embed_tokens(wanted).float().numpy()
        kind = self.types.get(name, "F32")
        read = torch.from_numpy(dequantize(self.plain(name, rows, kind), kind))[place]
        return Streams(exact, read.view_as(exact) * self.model.config.embedding_scale)

    def _matrix(self, prefix: str, name: str, weights: Tensor, sums: Sums) -> Tensor:
        """Round one matrix of a layer and keep its bytes; the weights that a reader will see."""
        there = gguf_name(f"{prefix}{name}.weight")
        assert there is not None
        if there in self.copied:
            return weights
        kind = self.types.get(there, "F32")
        if kind not in GRIDS:
            return torch.from_numpy(dequantize(self.plain(there, weights.numpy(), kind), kind))
        held = rounded_matrix(weights, sums, GRIDS[kind], self.config, self.model.config.residual_scale)
        order = self.order(there)
        rows = packed(held)
        self.store.save(there, rows if order is None else rows[order])
        return held.dense()

    def _head(self, streams: Streams) -> None:
        """A head that is not the embedding, from the final hidden states."""
        name = TENSORS[HEAD]
        kind = self.types.get(name)
        if kind not in GRIDS or name in self.copied or self.model.config.tie_word_embeddings:
            return
        scale = self.model.config.logit_scale
        x, y = ((self.model.model.norm(h) * scale).reshape(-1, h.shape[-1]) for h in (streams.exact, streams.rounded))
        n = len(y)
        sums = Sums(y.T @ y / n, (x - y).T @ y / n, None, n)
        held = rounded_matrix(dense_weight(self.model.lm_head), sums, GRIDS[kind], self.config, 1.0)
        self.store.save(name, packed(held))
