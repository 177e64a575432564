"""The matrices of a draft head, packed, and what it has from the large model: its embedding and its output head, unless it brings
its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.speculate.heads.config import HeadConfig
from gangpao.engine.weights import MLP, Embedding, Loader
from gangpao.formats.architectures import MARKOV
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """qkv: of the tokens of a block; kv: the same matrices without q, of what the large model's states come to. window: positions
    in front of a token that it sees, itself among them, 0: all; by_row: for each row of a block the same, counted from the end of
    the block, where rows see it to its end."""

    attn_norm: kernels.Array
    qkv: kernels.Linear
    kv: kernels.Linear
    spec: kernels.AttentionSpec
    o: kernels.Linear
    ffn_norm: kernels.Array
    mlp: MLP
    window: int
    by_row: tuple[kernels.AttentionSpec, ...]


@dataclass(frozen=True, slots=True)
class Markov:
    """What a guess says of the next one: logits += second (first[token]), first [V, R] in the file. The chance that a guess is
    right is the sigmoid of sure . [hidden state, first[token]] + bias, where there is sure [D + R]."""

    rank: int
    raw: npt.NDArray[np.uint8]
    kind: str
    second: kernels.Linear
    sure: Floats | None
    bias: float

    def row(self, token: int) -> Floats:
        """first[token], float32 [R]."""
        out: Floats = dequantize(self.raw[token : token + 1], self.kind)[0]
        return out


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """nbytes: packed, without what the large model has anyway."""

    embed: Embedding
    fuse: kernels.Linear
    fuse_norm: kernels.Array
    layers: tuple[HeadLayer, ...]
    final_norm: kernels.Array
    output: kernels.Linear
    markov: Markov | None
    rope_factors: dict[str, Floats]
    nbytes: int


def load_head(gguf: GGUF, c: HeadConfig, large: GGUF, output: kernels.Linear) -> HeadWeights:
    """Packs a head. large: the open file of the large model, output: its output head. Raises ModelFileError for a file with tensors
    that have no place, or without some that are needed."""
    loader, width, vocab = Loader(gguf, c.model, None), c.model.hidden_size, c.model.vocab_size
    embedded = replace(c.model, embedding_scale=c.embedding_scale)
    own = loader.has("token_embd.weight")
    if loader.has("output.weight") or own:
        output = loader.head()
    markov = _markov(loader, c.markov, width, vocab) if c.markov else None
    fuse = kernels.Linear([loader.matrix("fc", width, len(c.reads) * width)])
    fuse_norm, final_norm = loader.norm("enc.output_norm.weight"), loader.norm("output_norm.weight")
    layers = tuple(_layer(loader, c, i) for i in range(c.model.num_hidden_layers))
    factors = loader.rope_factors()
    loader.check_all_taken()
    return HeadWeights(
        Embedding(gguf if own else large, embedded), fuse, fuse_norm, layers, final_norm, output, markov, factors,
        loader.arena.nbytes,
    )  # fmt: skip


def _layer(loader: Loader, head: HeadConfig, i: int) -> HeadLayer:
    c, prefix, window = loader.config, f"blk.{i}", head.windows[i]
    q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    q, k, v = (
        loader.matrix(f"{prefix}.attn_{name}", rows, c.hidden_size)
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
    )
    q_norm, k_norm = (loader.vector(f"{prefix}.attn_{name}_norm.weight", c.head_dim) for name in ("q", "k"))
    spec = partial(
        kernels.attention_spec, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rope_dim, c.head_dim**-0.5,
        c.rms_norm_eps, q_norm, k_norm,
    )  # fmt: skip
    (mlp,) = loader.mlps(prefix)
    return HeadLayer(
        attn_norm=loader.norm(f"{prefix}.attn_norm.weight"),
        qkv=kernels.Linear([q, k, v]),
        kv=kernels.Linear([k, v]),
        spec=spec(window if head.causal else 0),
        o=kernels.Linear([loader.matrix(f"{prefix}.attn_output", c.hidden_size, q_rows)]),
        ffn_norm=loader.norm(f"{prefix}.ffn_norm.weight"),
        mlp=mlp,
        window=window,
        by_row=tuple(spec(window + behind) for behind in reversed(range(head.block)))
        if window and not head.causal
        else (),
    )


def _markov(loader: Loader, rank: int, width: int, vocab: int) -> Markov:
    kind, sure, bias = loader.take(MARKOV, (vocab, rank)), None, 0.0
    second = kernels.Linear([loader.matrix("markov_w2", vocab, rank)])
    if loader.has("conf_proj.weight"):
        loader.take("conf_proj.weight", (1, width + rank))
        sure = loader.gguf.array("conf_proj.weight")[0]
        bias = float(loader.vector("conf_proj.bias", 1)[0]) if loader.has("conf_proj.bias") else 0.0
    return Markov(rank, loader.gguf.raw(MARKOV), kind, second, sure, bias)
