"""From GGUF tensors to packed matrices.

Every matrix is packed once at load into panels (`kernels/src/panel.h`), lossless, and its pages of the file are given back,
so that the model is in memory once. q, k and v become one linear layer, gate and up another: one kernel call each,
even where their types differ. The embedding stays in the file: only the rows that are asked for are read.
A tensor that nothing reads is an error, because computing without it would give a wrong answer in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.config import ModelConfig
from gangpao.engine.layers.attention import Attention, LatentAttention
from gangpao.engine.layers.gated_delta import GatedDelta
from gangpao.engine.packed.store import PackedStore
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF, ModelFileError

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
LARGE_HEAD = 8192  # rows from which on a search for the largest logits pays (head/two_pass.py)


@dataclass(frozen=True, slots=True)
class MLP:
    """Gate and up side by side, and down."""

    gate_up: kernels.Linear
    down: kernels.Linear

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Norm weights are [1, hidden_size]. mixer: what mixes tokens. mlps: one, or the experts that the router chooses
    from. post_norms: behind what mixes and behind the MLP, where there are some."""

    attn_norm: kernels.Array
    mixer: Attention | LatentAttention | GatedDelta
    ffn_norm: kernels.Array
    mlps: tuple[MLP, ...]
    router: kernels.Linear | None
    post_norms: tuple[kernels.Array, kernels.Array] | None = None

    def adaptable(self) -> dict[str, kernels.Linear]:
        """The linear layers that adapters may belong to, by the engine's names; experts are none of them."""
        out = self.mixer.adaptable()
        return out if self.router else out | {"gate_up": self.mlps[0].gate_up, "down": self.mlps[0].down}


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything the forward pass reads. nbytes: packed; idle_nbytes: of them those of experts that one token does not meet."""

    layers: tuple[Layer, ...]
    final_norm: kernels.Array
    head: kernels.Linear
    rope_factors: dict[str, Floats]
    nbytes: int
    idle_nbytes: int = 0


class Loader:
    """Takes tensors of a file one by one, packed; what was taken by none is an error at the end (`check_all_taken`)."""

    def __init__(self, gguf: GGUF, config: ModelConfig, progress: Progress | None, float32: bool = False) -> None:
        self.gguf = gguf
        self.float32 = float32
        self.config = config
        self.progress = progress
        self.arena = kernels.Arena()
        layers = config.num_hidden_layers
        unread = ("token_embd.weight", *(f"blk.{i}." for i in range(layers, layers + config.draft_layers)))
        self.left = {name for name in gguf.tensors if not name.startswith(unread)}
        self.done_bytes = 0
        self.total_bytes = sum(t.nbytes for t in gguf.tensors.values())

    def take(self, name: str, shape: tuple[int, ...]) -> str:
        """The type of a tensor that is used. Raises ModelFileError where it is missing, or of another shape."""
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
        self.take(name, (length,))
        return np.ascontiguousarray(self.gguf.array(name), dtype=np.float32).reshape(length)

    def norm(self, name: str, scale: float = 1.0, width: int | None = None) -> kernels.Array:
        values = self.vector(name, width or self.config.hidden_size)
        out = kernels.Array(1, len(values))
        out.numpy()[0] = values * np.float32(scale)
        return out

    def matrix(
        self, name: str, rows: int, cols: int, order: npt.NDArray[np.int32] | None = None, *, planes: bool = False
    ) -> kernels.Matrix:
        """`name`.weight as panels, with `name`.bias where the file has one; rows in the given order. planes: see kernels.pack."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        kind = self.take(weight, (rows, cols))
        packed = self._pack(self.gguf.raw(weight), kind, rows, cols, order, planes=planes)
        self.gguf.release(weight)
        if self.has(bias):
            values = self.vector(bias, rows)
            packed.set_bias(values if order is None else values[order])
        return packed

    def stacked(self, name: str, count: int, rows: int, cols: int) -> list[kernels.Matrix]:
        """The matrices of `name`.weight [count, rows, cols], one after the other."""
        weight = f"{name}.weight"
        kind = self.take(weight, (count, rows, cols))
        pieces = self.gguf.raw(weight).reshape(count, rows, -1)
        packed = [self._pack(piece, kind, rows, cols, None) for piece in pieces]
        self.gguf.release(weight)
        return packed

    def _pack(
        self,
        raw: npt.NDArray[np.uint8],
        kind: str,
        rows: int,
        cols: int,
        order: npt.NDArray[np.int32] | None,
        *,
        planes: bool = False,
    ) -> kernels.Matrix:
        if self.float32:
            raw, kind = dequantize(raw, kind).view(np.uint8), "F32"
        return kernels.pack(raw, kind, rows, cols, order, self.arena, planes)

    def mlps(self, prefix: str) -> tuple[MLP, ...]:
        """The MLP of a layer, or all its experts."""
        c = self.config
        shapes = {
            "gate": (c.intermediate_size, c.hidden_size),
            "up": (c.intermediate_size, c.hidden_size),
            "down": (c.hidden_size, c.intermediate_size),
        }
        if not c.num_experts:
            gate, up, down = ([self.matrix(f"{prefix}.ffn_{name}", *shape)] for name, shape in shapes.items())
        elif self.has(f"{prefix}.ffn_gate.0.weight"):
            raise ModelFileError(
                f"{self.gguf.path}: {prefix}.ffn_gate.0.weight is one expert alone, a form of 2023 that is not read; convert the "
                "model again, so that the experts of a layer are one tensor"
            )
        else:
            gate, up, down = (
                self.stacked(f"{prefix}.ffn_{name}_exps", c.num_experts, *shape) for name, shape in shapes.items()
            )
        return tuple(MLP(kernels.Linear([g, u]), kernels.Linear([d])) for g, u, d in zip(gate, up, down, strict=True))

    def layer(self, i: int) -> Layer:
        c, prefix = self.config, f"blk.{i}"
        router = None
        if c.num_experts:
            router = kernels.Linear([self.matrix(f"{prefix}.ffn_gate_inp", c.num_experts, c.hidden_size)])
        assert c.row.gguf is not None
        names = c.row.gguf.layer_tensors()
        mixer: Attention | LatentAttention | GatedDelta
        recurrent = bool(c.layer_types) and c.layer_types[i] == "linear_attention"
        if recurrent:
            mixer = self.gated_delta(prefix)
        elif c.latent:
            mixer = self.latent_attention(prefix)
        else:
            local = bool(c.layer_types) and c.layer_types[i] == "sliding_attention"
            mixer = self.attention(prefix, c.rope_dim if c.rotates(i) else 0, local=local)
        post_norms, before_mlp = None, "post_attention_layernorm"
        if c.row.parts.post_norms:
            behind = [names[f"post_{place}_layernorm"] for place in ("attention", "feedforward")]
            post_norms = (self.norm(f"{prefix}.{behind[0]}.weight"), self.norm(f"{prefix}.{behind[1]}.weight"))
            before_mlp = "pre_feedforward_layernorm"
        return Layer(
            attn_norm=self.norm(f"{prefix}.{names['input_layernorm']}.weight"),
            mixer=mixer,
            ffn_norm=self.norm(f"{prefix}.{names[before_mlp]}.weight"),
            post_norms=post_norms,
            mlps=self.mlps(prefix),
            router=router,
        )

    def attention(self, prefix: str, rope_dim: int, *, local: bool = False) -> Attention:
        """Weights of a layer that attends and turns so many dimensions of each head. local: sees a window."""
        c = self.config
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        q_order = k_order = None
        if c.row.gguf and c.row.gguf.interleaved:
            q_order = rotate_half_order(c.num_attention_heads, c.head_dim, c.rope_dim)
            k_order = rotate_half_order(c.num_key_value_heads, c.head_dim, c.rope_dim)
        gated = c.row.parts.attention_gate
        q = (
            self.halves(f"{prefix}.attn_q", c.num_attention_heads, c.head_dim)
            if gated
            else [self.matrix(f"{prefix}.attn_q", q_rows, c.hidden_size, q_order)]
        )
        qkv = [
            q[0],
            self.matrix(f"{prefix}.attn_k", kv_rows, c.hidden_size, k_order),
            self.matrix(f"{prefix}.attn_v", kv_rows, c.hidden_size),
            *q[1:],
        ]
        q_norm = k_norm = None
        if c.row.parts.qk_norm:
            q_norm = self.vector(f"{prefix}.attn_q_norm.weight", c.head_dim)
            k_norm = self.vector(f"{prefix}.attn_k_norm.weight", c.head_dim)
        spec = kernels.attention_spec(
            c.num_attention_heads, c.num_key_value_heads, c.head_dim, rope_dim, c.head_dim**-0.5, c.rms_norm_eps,
            q_norm, k_norm, c.window if local else 0,
        )  # fmt: skip
        o = kernels.Linear([self.matrix(f"{prefix}.attn_output", c.hidden_size, q_rows)])
        return Attention(kernels.Linear(qkv), spec, o, q_rows + 2 * kv_rows if gated else 0, local)

    def latent_attention(self, prefix: str) -> LatentAttention:
        """Weights of a layer of latent attention."""
        c, latent = self.config, self.config.latent
        assert latent is not None
        heads, plain = c.num_attention_heads, c.head_dim - c.rope_dim
        head = np.concatenate([np.arange(plain, c.head_dim), np.arange(plain)])
        order = (np.arange(heads)[:, None] * c.head_dim + head).reshape(-1).astype(np.int32)
        down = [
            self.matrix(f"{prefix}.attn_q_a", latent.q_rank, c.hidden_size),
            self.matrix(f"{prefix}.attn_kv_a_mqa", latent.kv_rank + c.rope_dim, c.hidden_size),
        ]
        up = self.matrix(f"{prefix}.attn_kv_b", heads * (plain + latent.v_dim), latent.kv_rank)
        spec = kernels.attention_spec(heads, heads, c.head_dim, c.rope_dim, c.head_dim**-0.5, c.rms_norm_eps)
        return LatentAttention(
            down=kernels.Linear(down),
            q_norm=self.norm(f"{prefix}.attn_q_a_norm.weight", width=latent.q_rank),
            q=kernels.Linear([self.matrix(f"{prefix}.attn_q_b", heads * c.head_dim, latent.q_rank, order)]),
            kv_norm=self.norm(f"{prefix}.attn_kv_a_norm.weight", width=latent.kv_rank),
            kv=kernels.Linear([up]),
            spec=spec,
            o=kernels.Linear([self.matrix(f"{prefix}.attn_output", c.hidden_size, heads * latent.v_dim)]),
        )

    def halves(self, name: str, heads: int, head_dim: int) -> list[kernels.Matrix]:
        """A matrix that has two rows of head_dim for every head, as two: q and its gate."""
        weight, rows, cols = f"{name}.weight", heads * head_dim, self.config.hidden_size
        kind = self.take(weight, (2 * rows, cols))
        raw = self.gguf.raw(weight).reshape(heads, 2, head_dim, -1)
        out = [self._pack(np.ascontiguousarray(raw[:, i]).reshape(rows, -1), kind, rows, cols, None) for i in range(2)]
        self.gguf.release(weight)
        return out

    def gated_delta(self, prefix: str) -> GatedDelta:
        """Weights of a layer of Gated DeltaNet; `ssm_a` is the decay's factor, below 0."""
        c, d = self.config, self.config.delta
        assert d is not None
        into = [
            self.matrix(f"{prefix}.{name}", rows, c.hidden_size)
            for name, rows in (
                ("attn_qkv", d.channels), ("attn_gate", d.value_size), ("ssm_beta", d.v_heads), ("ssm_alpha", d.v_heads)
            )
        ]  # fmt: skip
        filters = f"{prefix}.ssm_conv1d.weight"
        self.take(filters, (d.channels, d.taps))
        spec = kernels.delta_spec(
            d.k_heads, d.v_heads, d.k_dim, d.v_dim, np.ascontiguousarray(self.gguf.array(filters).T),
            self.vector(f"{prefix}.ssm_a", d.v_heads), self.vector(f"{prefix}.ssm_dt.bias", d.v_heads),
            self.vector(f"{prefix}.ssm_norm.weight", d.v_dim), c.rms_norm_eps,
        )  # fmt: skip
        out = kernels.Linear([self.matrix(f"{prefix}.ssm_out", c.hidden_size, d.value_size)])
        return GatedDelta(kernels.Linear(into), spec, out)

    def head(self) -> kernels.Linear:
        """The output matrix, or the embedding where they are tied."""
        c = self.config
        name = "output" if self.has("output.weight") else "token_embd"
        return kernels.Linear([self.matrix(name, c.vocab_size, c.hidden_size, planes=c.vocab_size >= LARGE_HEAD)])

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
    gguf: GGUF,
    config: ModelConfig,
    progress: Progress | None = None,
    *,
    float32: bool = False,
    store: PackedStore | None = None,
) -> Weights:
    """Packs every tensor of the file. progress(done_bytes, total_bytes) is called after each.

    float32: as such, whatever the file has, so that activations are not rounded either. store: where packed weights are kept; what
    is there is not packed again.
    """
    loader = Loader(gguf, config, progress, float32)
    kept = store.fill(loader.arena, gguf, float32=float32) if store else 0
    layers = tuple(loader.layer(i) for i in range(config.num_hidden_layers))
    final_norm, head, factors = loader.outside_layers()
    loader.check_all_taken()
    if store is not None and kept != loader.arena.nbytes:
        if kept:  # of a version that takes other tensors
            store.drop(gguf, float32=float32)
            return load_weights(gguf, config, progress, float32=float32)
        store.keep(loader.arena, gguf, float32=float32)
    return Weights(layers, final_norm, head, factors, loader.arena.nbytes, _idle(layers, config))


def _idle(layers: Sequence[Layer], c: ModelConfig) -> int:
    """Bytes of the experts that one token does not meet; those of a layer are equally large."""
    return sum(sum(mlp.nbytes for mlp in layer.mlps[c.num_experts_per_tok :]) for layer in layers if layer.router)


def weights_by_layer(gguf: GGUF, config: ModelConfig) -> Iterator[Weights]:
    """The weights of `load_weights`, each time with one layer, the next: one after the other they need the memory of one."""
    loader = Loader(gguf, config, None)
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
