"""From GGUF tensors to packed matrices.

Every matrix is packed once at load into panels (`kernels/src/panel.h`), lossless, and its pages of the file are given back,
so that the model is in memory once. q, k and v become one linear layer, gate and up another: one kernel call each,
even where their types differ. The embedding stays in the file: only the rows that are asked for are read.
A tensor that nothing reads is an error, because computing without it would give a wrong answer in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.config import ModelConfig
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF, ModelFileError

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Norm weights are [1, hidden_size]."""

    attn_norm: kernels.Array
    qkv: kernels.Linear
    attention: kernels.AttentionSpec
    o: kernels.Linear
    ffn_norm: kernels.Array
    gate_up: kernels.Linear
    down: kernels.Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything the forward pass reads."""

    layers: tuple[Layer, ...]
    final_norm: kernels.Array
    head: kernels.Linear
    rope_factors: dict[str, Floats]
    nbytes: int


class _Loader:
    def __init__(self, gguf: GGUF, config: ModelConfig, progress: Progress | None, float32: bool = False) -> None:
        self.gguf = gguf
        self.float32 = float32
        self.config = config
        self.progress = progress
        self.arena = kernels.Arena()
        self.left = set(gguf.tensors) - {"token_embd.weight"}
        self.done_bytes = 0
        self.total_bytes = sum(t.nbytes for t in gguf.tensors.values())

    def _take(self, name: str, shape: tuple[int, ...]) -> str:
        info = self.gguf.tensors.get(name)
        if info is None:
            raise ModelFileError(f"{self.gguf.path}: tensor {name} is missing; the file is incomplete, pull it again")
        if info.shape != shape:
            raise ModelFileError(f"{self.gguf.path}: tensor {name} has shape {info.shape}, expected {shape}")
        self.left.discard(name)
        self.done_bytes += info.nbytes
        if self.progress:
            self.progress(self.done_bytes, self.total_bytes)
        return info.type

    def has(self, name: str) -> bool:
        return name in self.gguf.tensors

    def vector(self, name: str, length: int) -> Floats:
        self._take(name, (length,))
        return np.ascontiguousarray(self.gguf.array(name), dtype=np.float32).reshape(length)

    def norm(self, name: str, scale: float = 1.0) -> kernels.Array:
        values = self.vector(name, self.config.hidden_size)
        out = kernels.Array(1, self.config.hidden_size)
        out.numpy()[0] = values * np.float32(scale)
        return out

    def matrix(self, name: str, rows: int, cols: int, order: npt.NDArray[np.int32] | None = None) -> kernels.Matrix:
        """`name`.weight as panels, with `name`.bias where the file has one; rows in the given order."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        kind = self._take(weight, (rows, cols))
        raw = self.gguf.raw(weight)
        if self.float32:
            raw, kind = dequantize(raw, kind).view(np.uint8), "F32"
        packed = kernels.pack(raw, kind, rows, cols, order, self.arena)
        self.gguf.release(weight)
        if self.has(bias):
            values = self.vector(bias, rows)
            packed.set_bias(values if order is None else values[order])
        return packed

    def layer(self, i: int) -> Layer:
        c = self.config
        prefix = f"blk.{i}"
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        q_order = k_order = None
        if c.row.gguf and c.row.gguf.interleaved:
            q_order = rotate_half_order(c.num_attention_heads, c.head_dim, c.rope_dim)
            k_order = rotate_half_order(c.num_key_value_heads, c.head_dim, c.rope_dim)
        qkv = [
            self.matrix(f"{prefix}.attn_q", q_rows, c.hidden_size, q_order),
            self.matrix(f"{prefix}.attn_k", kv_rows, c.hidden_size, k_order),
            self.matrix(f"{prefix}.attn_v", kv_rows, c.hidden_size),
        ]
        q_norm = k_norm = None
        if c.row.parts.qk_norm:
            q_norm = self.vector(f"{prefix}.attn_q_norm.weight", c.head_dim)
            k_norm = self.vector(f"{prefix}.attn_k_norm.weight", c.head_dim)
        attention = kernels.attention_spec(
            c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope_dim, c.head_dim**-0.5, c.rms_norm_eps,
            q_norm, k_norm,
        )  # fmt: skip
        gate = self.matrix(f"{prefix}.ffn_gate", c.intermediate_size, c.hidden_size)
        up = self.matrix(f"{prefix}.ffn_up", c.intermediate_size, c.hidden_size)
        return Layer(
            attn_norm=self.norm(f"{prefix}.attn_norm.weight"),
            qkv=kernels.Linear(qkv),
            attention=attention,
            o=kernels.Linear([self.matrix(f"{prefix}.attn_output", c.hidden_size, q_rows)]),
            ffn_norm=self.norm(f"{prefix}.ffn_norm.weight"),
            gate_up=kernels.Linear([gate, up]),
            down=kernels.Linear([self.matrix(f"{prefix}.ffn_down", c.hidden_size, c.intermediate_size)]),
        )

    def head(self) -> kernels.Linear:
        """The output matrix, or the embedding where they are tied."""
        c = self.config
        name = "output" if self.has("output.weight") else "token_embd"
        return kernels.Linear([self.matrix(name, c.vocab_size, c.hidden_size)])

    def outside_layers(self) -> tuple[kernels.Array, kernels.Linear, dict[str, Floats]]:
        """The final norm, the head and the rotary factors."""
        # The logit scale rides on the final norm: one multiplication less for each of 100,000 logits.
        return self.norm("output_norm.weight", self.config.logit_scale), self.head(), self.rope_factors()

    def check_all_taken(self) -> None:
        if self.left:
            some = ", ".join(sorted(self.left)[:4])
            raise ModelFileError(
                f"{self.gguf.path}: {len(self.left)} tensors have no place in a {self.config.architecture} model ({some}); "
                "this variant is not supported, and leaving them out would give wrong answers"
            )

    def rope_factors(self) -> dict[str, Floats]:
        names = {
            "freqs": "rope_freqs.weight", "long": "rope_factors_long.weight", "short": "rope_factors_short.weight"
        }  # fmt: skip
        return {k: self.vector(n, self.config.rope_dim // 2) for k, n in names.items() if self.has(n)}


def rotate_half_order(heads: int, head_dim: int, rope_dim: int) -> npt.NDArray[np.int32]:
    """Row order [heads * head_dim] that turns pairs (2i, 2i+1) of every head into pairs (i, i + rope_dim / 2)."""
    head = np.arange(head_dim)
    head[:rope_dim] = np.concatenate([np.arange(0, rope_dim, 2), np.arange(1, rope_dim, 2)])
    order = np.arange(heads)[:, None] * head_dim + head[None, :]
    return np.ascontiguousarray(order.reshape(-1), dtype=np.int32)


def load_weights(
    gguf: GGUF, config: ModelConfig, progress: Progress | None = None, *, float32: bool = False
) -> Weights:
    """Packs every tensor of the file. progress(done_bytes, total_bytes) is called after each.

    float32: as such, whatever the file has, so that activations are not rounded either.
    """
    loader = _Loader(gguf, config, progress, float32)
    layers = tuple(loader.layer(i) for i in range(config.num_hidden_layers))
    final_norm, head, factors = loader.outside_layers()
    loader.check_all_taken()
    return Weights(layers, final_norm, head, factors, loader.arena.nbytes)


def weights_by_layer(gguf: GGUF, config: ModelConfig) -> Iterator[Weights]:
    """The weights of `load_weights`, each time with one layer, the next: one after the other they need the memory of one."""
    loader = _Loader(gguf, config, None)
    final_norm, head, factors = loader.outside_layers()
    for i in range(config.num_hidden_layers):
        loader.arena = kernels.Arena()
        yield Weights((loader.layer(i),), final_norm, head, factors, loader.arena.nbytes)
    loader.check_all_taken()


class Embedding:
    """Rows of token_embd.weight, read from the file as they are needed; calling it gives [len(ids), hidden_size]."""

    def __init__(self, gguf: GGUF, config: ModelConfig) -> None:
        self._raw = gguf.raw("token_embd.weight")
        self._type = gguf.tensors["token_embd.weight"].type
        self._scale = np.float32(config.embedding_scale)

    def __call__(self, ids: npt.NDArray[np.int64]) -> Floats:
        """Scaled float32 rows [len(ids), hidden_size]."""
        rows = dequantize(self._raw[ids], self._type)
        return rows if self._scale == 1 else rows * self._scale
