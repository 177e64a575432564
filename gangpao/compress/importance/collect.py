"""Importance matrices collected with our engine: packed weights, any type, the prompt's own speed.

A model that is watched computes as ever; in front of each product the squares of its inputs are added up, column by column, in
float64 and in one order, so that the sums have the same bits on every machine. Windows are computed one after the other, each from
an empty cache. What was computed is saved now and then; a run that was killed goes on from there, to the same bits.

An expert has sums and a count of its own, of the tokens that were sent to it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from gangpao.engine.layers.attention import Attention, LatentAttention
from gangpao.engine.layers.gated_delta import GatedDelta
from gangpao.engine.transformer import CHUNK, Segment, Transformer
from gangpao.engine.weights import Layer
from gangpao.formats.imatrix import Importance
from gangpao.progress import Progress, Silent

Ids = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_STATE_VERSION = 2  # of the file that a killed run goes on from
SAVE_SECONDS = 30.0
# What reads each of the inputs of a layer: of attention, latent attention, Gated DeltaNet, an MLP, experts.
READERS = {
    "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",),
    "low": ("attn_q_a", "attn_kv_a_mqa"), "q": ("attn_q_b",), "kv": ("attn_kv_b",),
    "delta": ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha"), "delta_out": ("ssm_out",),
    "gate_up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",),
    "gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"), "down_exps": ("ffn_down_exps",),
}  # fmt: skip


@dataclass(slots=True)
class _Sum:
    """Of an input: squares [1, C], or [experts, C] of those of experts, and over how many tokens."""

    squares: Doubles
    counts: Counts


class _Watched(Transformer):
    """The same model, which adds up the squares of the inputs of its products. head: name of the output matrix, if its too."""

    def __init__(self, model: Transformer, head: str) -> None:
        super().__init__(model.config, model.weights, model.embed)
        self._buffers = type(self._buffers)(model.config, model.weights, floats=True)
        self._output = Output(model.config, model.weights, floats=True)
        self._head_name, self._number = head, 0
        self.sums: dict[str, _Sum] = {}

    def _layer(self, layer: Layer, more: LayerTables, i: int, n: int, pool: KVPool) -> None:
        self._number = i
        super()._layer(layer, more, i, n, pool)
        if layer.router is None:
            self._add("gate_up", self._buffers.normed, n)
            self._add("down", self._buffers.gated, n)
        if self._head_name and i == self.config.num_hidden_layers - 1:
            self._add_head(n)

    def _attention(self, layer: Layer, m: Attention, more: LayerTables, place: int, n: int, pool: KVPool) -> None:
        self._add("qkv", self._buffers.normed, n)
        super()._attention(layer, m, more, place, n, pool)
        self._add("o", self._buffers.heads, n)

    def _latent_attention(self, m: LatentAttention, place: int, n: int, pool: KVPool) -> None:
        low = self._buffers.latent
        assert low is not None
        self._add("low", self._buffers.normed, n)
        super()._latent_attention(m, place, n, pool)
        for name, inputs in (("q", low.q_normed), ("kv", low.kv_normed), ("o", low.heads)):
            self._add(name, inputs, n)

    def _gated_delta(self, m: GatedDelta, place: int, pool: KVPool) -> None:
        d, n = self._buffers.delta, sum(len(s.ids) for s in self._buffers.segments)
        assert d is not None
        self._add("delta", self._buffers.normed, n)
        super()._gated_delta(m, place, pool)
        self._add("delta_out", d.heads, n)

    def _expert(self, layer: Layer, number: int, normed: kernels.Activation, count: int) -> None:
        super()._expert(layer, number, normed, count)
        experts = len(layer.mlps)
        self._add("gate_up_exps", normed, count, number, experts)
        self._add("down_exps", self._buffers.gated, count, number, experts)

    def _add_head(self, n: int) -> None:
        for begin in range(0, n, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, n)
            inputs = self._output.normed(self._buffers.hidden_view, slice(begin, end))
            self._add_to(self._head_name, inputs, end - begin)

    def _add(self, place: str, inputs: kernels.Activation, n: int, row: int = 0, rows: int = 1) -> None:
        self._add_to(f"{self._number}.{place}", inputs, n, row, rows)

    def _add_to(self, name: str, inputs: kernels.Activation, n: int, row: int = 0, rows: int = 1) -> None:
        if name not in self.sums:
            self.sums[name] = _Sum(np.zeros((rows, inputs.cols)), np.zeros(rows, np.int64))
        squares = inputs.floats()[:n].astype(np.float64)
        squares *= squares
        found = self.sums[name]
        found.squares[row] += squares.sum(axis=0)
        found.counts[row] += n


def collect(
    engine: Engine,
    ids: Ids,
    *,
    head: str = "",
    datasets: Sequence[str] = (),
    state: Path | None = None,
    keep: bool = False,
    identity: str = "",
    progress: Progress | None = None,
) -> Importance:
    """The importance of every column of a loaded model on windows of ids [N, T].

    head: the GGUF name of the output matrix where its inputs are wanted, too (output.weight, or token_embd.weight if tied).
    state: a file in which what was computed is kept until all is, and then, too, with `keep`, for a caller that goes on for long;
    identity: of the model, so that another one's is not taken.
    Raises ValueError where the model's numbers are not finite.
    """
    windows, length = len(ids), ids.shape[1]
    if length > engine.context:
        raise ValueError(
            f"windows of {length} tokens and a context of {engine.context}: load the model with a wider one"
        )
    model, done = _Watched(engine.model, head), 0
    key = hashlib.sha256(f"{_STATE_VERSION} {identity} {head} {ids.shape}".encode() + ids.tobytes()).hexdigest()
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
    if state is not None and keep:
        _save(state, key, windows, model.sums)
    elif state is not None:
        state.unlink(missing_ok=True)
    return _importance(model, ids, tuple(datasets))


def _importance(model: _Watched, ids: Ids, datasets: tuple[str, ...]) -> Importance:
    sums: dict[str, npt.NDArray[np.float32]] = {}
    counts: dict[str, Counts] = {}
    for name, found in model.sums.items():
        if not np.isfinite(found.squares).all():
            raise ValueError(
                f"inputs of {name} are not finite: the model file is damaged; check it with `gangpao show`"
            )
        layer, _, place = name.partition(".")
        readers = [f"blk.{layer}.{reader}.weight" for reader in READERS[place]] if place in READERS else [name]
        squares = found.squares.astype(np.float32)
        sums |= dict.fromkeys(readers, squares if len(squares) > 1 else squares[0])
        counts |= dict.fromkeys(readers, found.counts)
    return Importance(sums, counts, len(ids), datasets, ids.shape[1])


def _save(state: Path, key: str, done: int, sums: dict[str, _Sum]) -> None:
    squares = {f"squares {name}": one.squares for name, one in sums.items()}
    counts = {f"counts {name}": one.counts for name, one in sums.items()}
    with new_file(state) as staging, staging.open("wb") as file:
        np.savez(file, key=np.array(key), done=np.array(done), **squares, **counts)  # type: ignore[arg-type]


def _restored(state: Path, key: str) -> tuple[int, dict[str, _Sum]]:
    """Windows that are done and their sums; nothing where there is no such file, or one of another model or other texts."""
    try:
        with np.load(state, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return 0, {}
            names = [name.removeprefix("squares ") for name in found.files if name.startswith("squares ")]
            return int(found["done"]), {n: _Sum(found[f"squares {n}"], found[f"counts {n}"]) for n in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # a damaged one is no loss: it is computed again
        return 0, {}
