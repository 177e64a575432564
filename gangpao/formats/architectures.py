"""The architectures that we run, train and export: one row each, and the names of their parts in both kinds of file.

MiniCPM, Qwen and Llama are one graph with other numbers: three scales, biases, a norm on q and k, the order in which a file
keeps rotated pairs. So an architecture is a row of ARCHITECTURES, never a subclass or a test on a name: the engine, the lab and
the export take all they know of one from here. A new one of this kind is one row (and a preset, where a size of it has a name).

What it gives up: a graph with other steps (another activation, norms behind the blocks) is more than a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Parts:
    """The optional parts of a graph. scales: of embedding, branches and logits. experts: in place of the MLP. latent: latent
    attention. attention_bias: on q, k and v. qk_norm: an RMSNorm on every head of q and k before RoPE."""

    scales: bool = False
    experts: bool = False
    latent: bool = False
    attention_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, slots=True)
class Scales:
    """MiniCPM's three numbers, under Hugging Face's names."""

    scale_emb: float
    scale_depth: float
    dim_model_base: int


@dataclass(frozen=True, slots=True)
class GGUFForm:
    """An architecture of GGUF. name: general.architecture. interleaved: q and k rows are stored so that the rotated pair is
    (2i, 2i+1), not (i, i + half). optional_bias: its readers take biases on q, k and v where a file has them. divisors: llama.cpp
    reads a tensor of rotary divisors. experts: it reads experts. scales: what a file means that is silent about them; None where
    the architecture has none."""

    name: str
    interleaved: bool = False
    optional_bias: bool = False
    divisors: bool = False
    experts: bool = False
    scales: Scales | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A class of transformers, or OpenBMB's own, that our graph computes, and its form in GGUF (None: none that we read).

    parts: scales and experts it may have, all others it has always. defaults: what the class takes where config.json is silent.
    other_names: model types and classes that are published for the same graph.
    """

    model_type: str
    class_name: str
    parts: Parts = Parts()
    gguf: GGUFForm | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    other_names: tuple[str, ...] = ()

    def computes(self, parts: Parts) -> bool:
        """Whether the class computes a model with these parts, and nothing else."""
        mine = self.parts
        optional = (mine.scales or not parts.scales) and (mine.experts or not parts.experts)
        always = (mine.latent, mine.attention_bias, mine.qk_norm)
        return optional and always == (parts.latent, parts.attention_bias, parts.qk_norm)

    def names(self) -> tuple[str, ...]:
        """All that model_type, architectures and auto_map may say of it."""
        return (
            self.model_type,
            self.class_name,
            self.class_name.replace("ForCausalLM", "Config"),
            *self.other_names,
        )


_ANY = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False, "rope_theta": 10000.0}
_MINICPM = _ANY | {"tie_word_embeddings": True}
_QWEN = _ANY | {"max_position_embeddings": 32_768, "num_key_value_heads": 32}
LATENT_RANKS = {"q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "llama", "LlamaForCausalLM",
        gguf=GGUFForm("llama", interleaved=True, optional_bias=True, divisors=True, experts=True),
        defaults=_ANY | {"max_position_embeddings": 2048},
    ),
    Architecture(
        "minicpm", "MiniCPMForCausalLM", Parts(scales=True, experts=True),
        GGUFForm(
            "minicpm", interleaved=True, optional_bias=True, divisors=True, experts=True,
            scales=Scales(12.0, 1.4, 256),  # of the files of 2024, which lack the keys
        ),
        defaults=_MINICPM | {"max_position_embeddings": 2048},
        other_names=(
            "minicpm4", "MiniCPM4ForCausalLM", "MiniCPM4Config", "MiniCPMLongRopeForCausalLM", "MiniCPMMoEForCausalLM",
        ),
    ),
    Architecture(
        "minicpm3", "MiniCPM3ForCausalLM", Parts(scales=True, latent=True),
        defaults=_MINICPM | LATENT_RANKS | {"max_position_embeddings": 32_768},
    ),
    Architecture("qwen2", "Qwen2ForCausalLM", Parts(attention_bias=True), GGUFForm("qwen2"), defaults=_QWEN),
    Architecture(
        "qwen3", "Qwen3ForCausalLM", Parts(qk_norm=True), GGUFForm("qwen3"), defaults=_QWEN | {"head_dim": 128}
    ),
)  # fmt: skip


def by_model_type() -> dict[str, Architecture]:
    """The rows by Hugging Face's model_type."""
    return {row.model_type: row for row in ARCHITECTURES}


def by_gguf_name() -> dict[str, Architecture]:
    """The rows that have a form in GGUF, by general.architecture."""
    return {row.gguf.name: row for row in ARCHITECTURES if row.gguf}


def by_any_name() -> dict[str, Architecture]:
    """The rows by all that model_type, architectures and auto_map may say of them."""
    return {name: row for row in ARCHITECTURES for name in row.names()}


def class_of(parts: Parts, said: str) -> Architecture | None:
    """The published class that computes a model of these parts; that of the model_type `said` if it can."""
    rows = by_model_type()
    return _first(sorted((row for row in rows.values() if row.computes(parts)), key=lambda row: row.model_type != said))


def gguf_form(parts: Parts, said: str, *, divisors: bool) -> Architecture | None:
    """The row whose GGUF form holds a model of these parts, and that llama.cpp reads where one does.

    divisors: the rotary frequencies are told by a tensor of divisors. said: its model_type decides between equals.
    """

    def holds(row: Architecture, form: GGUFForm) -> bool:
        bias = parts.attention_bias == row.parts.attention_bias or (parts.attention_bias and form.optional_bias)
        return (
            bias
            and parts.qk_norm == row.parts.qk_norm
            and parts.latent == row.parts.latent
            and (form.scales is not None or not parts.scales)
            and (form.experts or not parts.experts)
        )

    def rank(row: Architecture) -> tuple[bool, bool, bool]:
        unread = divisors and not (row.gguf and row.gguf.divisors)
        return unread, parts.attention_bias != row.parts.attention_bias, row.model_type != said

    return _first(sorted((row for row in ARCHITECTURES if row.gguf and holds(row, row.gguf)), key=rank))


def _first(rows: Iterable[Architecture]) -> Architecture | None:
    return next(iter(rows), None)


# --- names in the files

# Fields of a configuration -> keys of a GGUF header, behind the architecture's name.
KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_dim": "rope.dimension_count",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}
# Tensors of a checkpoint -> tensors of a GGUF file: outside the layers (whole names), in a layer, of an expert.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TENSORS = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
EXPERT_TENSORS = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
