"""Importance matrices collected with our engine: packed weights, any type, the prompt's own speed.

A model that is watched computes as ever; in front of each product the squares of its inputs are added up, column by column, in
float64 and in one order, so that the sums have the same bits on every machine. Windows are computed one after the other, each from
an empty cache. What was computed is saved now and then; a run that was killed goes on from there, to the same bits.

What it gives up: experts, whose inputs are those of a part of the tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.atomic import new_file
from gangpao.engine.adapters import LayerTables
from gangpao.engine.cache import KVPool
from gangpao.engine.generate import Engine
from gangpao.engine.head.output import LOGIT_ROWS, Output
from gangpao.engine.transformer import CHUNK, Segment, Transformer
from gangpao.engine.weights import Layer
from gangpao.formats.imatrix import Importance
from gangpao.progress import Progress, Silent

Ids = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

SAVE_SECONDS = 30.0
# What reads each of the four inputs of a layer.
READERS = {
    "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",), "gate_up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",),
}  # fmt: skip


class _Watched(Transformer):
    """The same model, which adds up the squares of the inputs of its products. head: name of the output matrix, if its too."""

    def __init__(self, model: Transformer, head: str) -> None:
        super().__init__(model.config, model.weights, model.embed)
        self._buffers = type(self._buffers)(model.config, model.weights, floats=True)
        self._output = Output(model.config, model.weights, floats=True)
        self._head_name = head
        self.sums: dict[str, Doubles] = {}

    def _layer(self, layer: Layer, more: LayerTables, i: int, n: int, pool: KVPool) -> None:
        b = self._buffers
        # The first norm's output is overwritten by the second's, so it is computed here once more.
        kernels.rmsnorm(b.hidden, n, layer.attn_norm, self.config.rms_norm_eps, b.normed)
        self._add(f"{i}.qkv", b.normed, n)
        super()._layer(layer, more, i, n, pool)
        self._add(f"{i}.o", b.heads, n)
        self._add(f"{i}.gate_up", b.normed, n)
        self._add(f"{i}.down", b.gated, n)
        if self._head_name and i == self.config.num_hidden_layers - 1:
            self._add_head(n)

    def _add_head(self, n: int) -> None:
        for begin in range(0, n, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, n)
            self._add(self._head_name, self._output.normed(self._buffers.hidden_view, slice(begin, end)), end - begin)

    def _add(self, name: str, inputs: kernels.Activation, n: int) -> None:
        squares = inputs.floats()[:n].astype(np.float64)
        squares *= squares
        if name in self.sums:
            self.sums[name] += squares.sum(axis=0)
        else:
            self.sums[name] = squares.sum(axis=0)


def collect(
    engine: Engine,
    ids: Ids,
    *,
    head: str = "",
    datasets: Sequence[str] = (),
    state: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> Importance:
    """The importance of every column of a loaded model on windows of ids [N, T].

    head: the GGUF name of the output matrix where its inputs are wanted, too (output.weight, or token_embd.weight if tied).
    state: a file in which what was computed is kept until all is; identity: of the model, so that another one's is not taken.
    Raises ValueError for a model of experts, and where the model's numbers are not finite.
    """
    config, windows, length = engine.model.config, len(ids), ids.shape[1]
    if getattr(config, "num_experts", 0):
        raise ValueError(f"{engine.name}: a model of experts; the inputs of experts are not collected here")
    if getattr(config, "latent", None):
        raise ValueError(
            f"{engine.name}: a model of latent attention; the inputs of its products are not collected here"
        )
    if getattr(config, "recurrent_layers", 0):
        raise ValueError(
            f"{engine.name}: a model of Gated DeltaNet; the inputs of its recurrent layers are not collected here"
        )
    if length > engine.context:
        raise ValueError(
            f"windows of {length} tokens and a context of {engine.context}: load the model with a wider one"
        )
    model, done = _Watched(engine.model, head), 0
    key = hashlib.sha256(f"{identity} {head} {ids.shape}".encode() + ids.tobytes()).hexdigest()
    if state is not None:
        done, model.sums = _restored(state, key)
    progress, pool = progress or Silent(), model.new_pool(length, engine.kv_dtype)
    progress.start("importance", windows * length, done * length)
    saved = time.monotonic()
    for number in range(done, windows):
        cache = pool.new()
        for begin in range(0, length, CHUNK):
            part = ids[number, begin : begin + CHUNK]
            if not cache.reserve(len(part)):
                raise ValueError("there is no memory for the keys and values of one window; take shorter ones")
            model.step([Segment(cache, part)])
            progress.update(number * length + begin + len(part))
        pool.release(cache)
        if state is not None and time.monotonic() - saved > SAVE_SECONDS:
            _save(state, key, number + 1, model.sums)
            saved = time.monotonic()
    if state is not None:
        state.unlink(missing_ok=True)
    return _importance(model, ids, tuple(datasets))


def _importance(model: _Watched, ids: Ids, datasets: tuple[str, ...]) -> Importance:
    sums: dict[str, npt.NDArray[np.float32]] = {}
    for name, values in model.sums.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"inputs of {name} are not finite: the model file is damaged; check it with `gangpao show`"
            )
        layer, _, place = name.partition(".")
        readers = [f"blk.{layer}.{reader}.weight" for reader in READERS[place]] if place in READERS else [name]
        sums |= dict.fromkeys(readers, values.astype(np.float32))
    counts = {name: np.array([ids.size], np.int64) for name in sums}
    return Importance(sums, counts, len(ids), datasets, ids.shape[1])


def _save(state: Path, key: str, done: int, sums: dict[str, Doubles]) -> None:
    with new_file(state) as staging, staging.open("wb") as file:
        np.savez(file, key=np.array(key), done=np.array(done), **sums)  # type: ignore[arg-type]


def _restored(state: Path, key: str) -> tuple[int, dict[str, Doubles]]:
    """Windows that are done and their sums; nothing where there is no such file, or one of another model or other texts."""
    try:
        with np.load(state, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return 0, {}
            return int(found["done"]), {name: found[name] for name in found.files if name not in ("key", "done")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # a damaged one is no loss: it is computed again
        return 0, {}
