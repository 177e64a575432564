"""A GGUF file as a model of the lab: the header becomes a ModelConfig, matrices stay in the file, norms and biases are floats.

The engine's reading of the header is believed (engine/config.py), and translated: MiniCPM's three scales, rope rules, a head of
its own where the file has one. Rows of q and k that a file keeps in rotated pairs come out in Hugging Face's order. What cannot
be said in a ModelConfig, and a tensor that nothing reads, is an error: the model would be another one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.engine.config import ModelConfig as Header
from gangpao.engine.rope import inverse_frequencies
from gangpao.engine.weights import rotate_half_order
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.architectures import EMBEDDING, EXPERT_TENSORS, HEAD, TENSORS
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.model.config import ModelConfig, RopeScaling
from gangpao.model.layers import Linear, RMSNorm
from gangpao.model.tiles import dense
from gangpao.model.transformer import Transformer
from gangpao.tune.base.quantized import Blocks, Order, QuantizedEmbedding, QuantizedLinear

_ROPE_FACTORS = {"freqs": "rope_freqs.weight", "long": "rope_factors_long.weight", "short": "rope_factors_short.weight"}


_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(w[123])\.weight")


def _place(name: str) -> tuple[str, int | None]:
    """The name in a GGUF file of a tensor, from Hugging Face's, and which expert of that tensor it is."""
    if match := _EXPERT.fullmatch(name):
        return f"blk.{match[1]}.{EXPERT_TENSORS[match[3]]}.weight", int(match[2])
    found = gguf_name(name)
    if found is None:
        raise ValueError(f"{name:.80} has no name in a GGUF file")
    return found, None


def read_config(gguf: GGUF) -> ModelConfig:
    """The lab's configuration of a file. Raises ModelFileError for what the lab cannot say."""
    h = Header.from_gguf(gguf)
    if h.delta or h.latent or h.row.parts.window:
        raise ModelFileError(
            f"{gguf.path}: a file with Gated DeltaNet, latent attention or layers that see a window is not trained on; give the "
            "Hugging Face folder that it was made from"
        )
    if h.rope_dim != h.head_dim:
        raise ModelFileError(
            f"{gguf.path}: RoPE turns {h.rope_dim} of the {h.head_dim} dimensions of a head; such a model cannot be trained here"
        )
    scales = {}
    if h.row.parts.scales:
        base = h.logit_scale * h.hidden_size
        if abs(base - round(base)) > 1e-3 * base or round(base) < 1:
            raise ModelFileError(f"{gguf.path}: the logit scale {h.logit_scale} is not a whole number of hidden_size")
        depth = h.residual_scale * math.sqrt(h.num_hidden_layers)
        scales = {"scale_emb": h.embedding_scale, "scale_depth": depth, "dim_model_base": round(base)}
    same = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
        "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings",
    )  # fmt: skip
    return ModelConfig.model_validate(
        {
            **{name: getattr(h, name) for name in same},
            **scales,
            "model_type": h.row.model_type,
            "rope_scaling": _rope_scaling(gguf, h),
            "tie_word_embeddings": TENSORS[HEAD] not in gguf.tensors,
            "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
            "qk_norm": h.row.parts.qk_norm,
            "no_rope_layers": tuple(int(h.rotates(i)) for i in range(h.num_hidden_layers)) if h.row.parts.nope else (),
            "moe": _experts(h),
            "bos_token_id": _id(gguf, "bos"),
            "eos_token_id": _id(gguf, "eos"),
        }
    )


def _experts(h: Header) -> dict[str, int] | None:
    return {"num_experts": h.num_experts, "num_experts_per_tok": h.num_experts_per_tok} if h.num_experts else None


def _id(gguf: GGUF, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return gguf.get_int(key) if key in gguf.metadata else None


def _rope_scaling(gguf: GGUF, h: Header) -> RopeScaling | None:
    factors = {key: gguf.array(name) for key, name in _ROPE_FACTORS.items() if name in gguf.tensors}
    s = h.rope_scaling
    if not factors and s.attention_factor == 1.0 and s.kind in ("none", "linear"):
        return RopeScaling(rope_type="linear", factor=s.factor) if s.kind == "linear" else None
    short, attention = inverse_frequencies(h, context=s.original_context, factors=factors)
    if s.kind == "yarn" and not factors:
        return RopeScaling(
            rope_type="yarn", factor=s.factor, original_max_position_embeddings=s.original_context,
            attention_factor=attention, beta_fast=s.beta_fast, beta_slow=s.beta_slow,
        )  # fmt: skip
    # Whatever else it is: what each frequency is divided by, up to the trained length and past it.
    long, _ = inverse_frequencies(h, context=s.original_context + 1, factors=factors)
    half = h.rope_dim // 2
    plain = h.rope_theta ** (-np.arange(half) / half)
    return RopeScaling(
        rope_type="longrope", original_max_position_embeddings=s.original_context, attention_factor=attention,
        short_factor=tuple((plain / short).tolist()), long_factor=tuple((plain / long).tolist()),
    )  # fmt: skip


def model_in_blocks(gguf: GGUF, config: ModelConfig) -> Transformer:
    """The model with all matrices as views of the open file, frozen.

    Raises ModelFileError for tensors that are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = Transformer(config)
    source = _Source(gguf, config)
    embedding = source.blocks(EMBEDDING, (config.vocab_size, config.hidden_size))
    model.model.embed_tokens = QuantizedEmbedding(embedding)
    for name, module in list(model.named_modules()):
        if isinstance(module, RMSNorm):
            module.weight = nn.Parameter(source.vector(f"{name}.weight", module.weight.shape[0]), requires_grad=False)
        elif isinstance(module, Linear):
            shape = (module.out_features, module.in_features)
            tied = name == "lm_head" and config.tie_word_embeddings
            tiles = embedding if tied else source.blocks(f"{name}.weight", shape)
            bias = None if module.bias is None else source.vector(f"{name}.bias", shape[0])
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, QuantizedLinear(tiles, bias))
    source.check_all_taken()
    return model


def tensors(gguf: GGUF, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """All (Hugging Face's name, float32 tensor), one after the other, so that only one exists here at a time."""
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in Transformer(config).named_parameters()}
    source = _Source(gguf, config)
    for name, shape in wanted.items():
        if len(shape) == 1:
            yield name, source.vector(name, shape[0])
        else:
            yield name, dense(source.blocks(name, (shape[0], shape[1])))
    source.check_all_taken()


class _Source:
    """The tensors of a file under Hugging Face's names, in its order of rows."""

    def __init__(self, gguf: GGUF, config: ModelConfig) -> None:
        self.gguf, self.config = gguf, config
        self.left = set(gguf.tensors) - set(_ROPE_FACTORS.values())
        self.orders: dict[str, Order] = {}
        form = Header.from_gguf(gguf).row.gguf
        if form is not None and form.interleaved:
            for name, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                self.orders[name] = rotate_half_order(heads, config.head_dim, config.rope_dim)

    def _take(self, there: str, shape: tuple[int, ...]) -> str:
        info = self.gguf.info(there)
        if info.shape != shape:
            raise ModelFileError(f"{self.gguf.path}: tensor {there} has shape {info.shape}, expected {shape}")
        self.left.discard(there)
        return there

    def _order(self, name: str) -> Order | None:
        return self.orders.get(name.split(".")[-2])

    def blocks(self, name: str, shape: tuple[int, int]) -> Blocks:
        there, expert = _place(name)
        moe = self.config.moe
        if expert is None or moe is None:
            raw = self.gguf.raw(self._take(there, shape))
        else:
            whole = self.gguf.raw(self._take(there, (moe.num_experts, *shape)))
            raw = whole[expert * shape[0] : (expert + 1) * shape[0]]
        return Blocks(raw, self.gguf.info(there).type, shape[1], self._order(name))

    def vector(self, name: str, length: int) -> Tensor:
        values = self.gguf.array(self._take(_place(name)[0], (length,)))
        order = self._order(name)
        return torch.from_numpy(np.array(values if order is None else values[order], dtype=np.float32))

    def check_all_taken(self) -> None:
        if self.left:
            some = ", ".join(sorted(self.left)[:4])
            raise ModelFileError(
                f"{self.gguf.path}: {len(self.left)} tensors have no place in this model ({some}); leaving them out would give "
                "another model than the one that is run"
            )
