"""The architectures that we run, train and export: one row each, and the names of their parts in both kinds of file.

MiniCPM, Qwen and Llama are one graph with other numbers: three scales, biases, a norm on q and k, the order in which a file
keeps rotated pairs. So an architecture is a row of ARCHITECTURES, never a subclass or a test on a name: the engine, the lab and
the export take all they know of one from here. A new one of this kind is one row (and a preset, where a size of it has a name).
Which layers attend and which keep a recurrent state is data of a model (`layer_types`), in Hugging Face's words.

What it gives up: a graph with other steps (another activation, norms behind the blocks) is more than a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Parts:
    """The optional parts of a graph. scales: of embedding, branches and logits. experts: in place of the MLP. latent: latent
    attention. attention_bias: on q, k and v. qk_norm: an RMSNorm on every head of q and k before RoPE. delta: layers of Gated
    DeltaNet among those that attend. attention_gate: what attention gives is multiplied by the sigmoid of a gate that q_proj
    computes beside each head of q. centred_norms: a norm multiplies by 1 + weight (those of Gated DeltaNet by the weight). nope:
    some layers do not rotate q and k. window: some layers see a window of positions only, and turn by a base of their own.
    post_norms: a norm behind each branch, too. gelu: in the MLP, for SiLU. root_embedding: embeddings times sqrt(hidden_size)."""

    scales: bool = False
    experts: bool = False
    latent: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    delta: bool = False
    attention_gate: bool = False
    centred_norms: bool = False
    nope: bool = False
    window: bool = False
    post_norms: bool = False
    gelu: bool = False
    root_embedding: bool = False

    def without_options(self) -> Parts:
        """Those that a class has always, or never."""
        return replace(self, scales=False, experts=False)


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
    reads a tensor of rotary divisors. experts: it reads experts. square: llama.cpp reads it only where all
    heads together are as wide as the model. scales: what a file means that is silent about them; None where the architecture has
    none. tensors: of a layer, where they are not those of LAYER_TENSORS."""

    name: str
    interleaved: bool = False
    optional_bias: bool = False
    divisors: bool = False
    experts: bool = False
    square: bool = False
    scales: Scales | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)

    def layer_tensors(self) -> dict[str, str]:
        """Parts of a layer -> tensors of it."""
        return LAYER_TENSORS | dict(self.tensors)


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
        return optional and mine.without_options() == parts.without_options()

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
_QWEN35 = _QWEN | {
    "num_key_value_heads": 4, "head_dim": 256, "partial_rotary_factor": 0.25, "mrope_section": (11, 11, 10),
    "full_attention_interval": 4,
}  # fmt: skip
# Gated DeltaNet's sizes in config.json and what they are where it is silent.
DELTA_SIZES = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}  # fmt: skip
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
        GGUFForm("minicpm3", divisors=True, scales=Scales(12.0, 1.4, 256)),
        defaults=_MINICPM | LATENT_RANKS | {"max_position_embeddings": 32_768},
    ),
    Architecture("qwen2", "Qwen2ForCausalLM", Parts(attention_bias=True), GGUFForm("qwen2", square=True), defaults=_QWEN),
    Architecture(
        "qwen3", "Qwen3ForCausalLM", Parts(qk_norm=True), GGUFForm("qwen3"), defaults=_QWEN | {"head_dim": 128}
    ),
    Architecture(
        "smollm3", "SmolLM3ForCausalLM", Parts(nope=True), GGUFForm("smollm3", interleaved=True),
        defaults=_ANY | {"max_position_embeddings": 32_768, "tie_word_embeddings": True, "rope_theta": 2e6},
    ),
    Architecture(
        "gemma3_text", "Gemma3ForCausalLM",
        Parts(qk_norm=True, centred_norms=True, window=True, post_norms=True, gelu=True, root_embedding=True),
        GGUFForm("gemma3", tensors={
            "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }),
        defaults=_ANY | {
            "max_position_embeddings": 131_072, "tie_word_embeddings": True, "rope_theta": 1e6, "head_dim": 256,
            "num_key_value_heads": 4, "sliding_window": 4096,
        },
        other_names=("Gemma3TextConfig",),
    ),
    Architecture(
        "qwen3_5_text", "Qwen3_5ForCausalLM", Parts(qk_norm=True, delta=True, attention_gate=True, centred_norms=True),
        GGUFForm("qwen35", tensors={"post_attention_layernorm": "post_attention_norm"}),
        defaults=_QWEN35, other_names=("Qwen3_5TextConfig",),
    ),
)  # fmt: skip

# Layers that draft for a large model from its hidden states; no models by themselves (engine/speculate/heads/). With the tensors of
# a Markov head a DFlash head is a DSpark head; both have the layers of Qwen3.
DRAFT_HEADS: tuple[Architecture, ...] = (
    Architecture(
        "dflash", "DFlashDraftModel", Parts(qk_norm=True), GGUFForm("dflash"), defaults=_QWEN | {"head_dim": 128},
        other_names=("DSparkDraftModel", "Qwen3DSparkModel"),
    ),
)  # fmt: skip


def by_model_type() -> dict[str, Architecture]:
    """The rows by Hugging Face's model_type."""
    return {row.model_type: row for row in ARCHITECTURES}


def by_gguf_name() -> dict[str, Architecture]:
    """The rows that have a form in GGUF, by general.architecture."""
    return {row.gguf.name: row for row in ARCHITECTURES if row.gguf}


def heads_by_gguf_name() -> dict[str, Architecture]:
    """Draft heads by general.architecture."""
    return {row.gguf.name: row for row in DRAFT_HEADS if row.gguf}


def models_and_heads() -> dict[str, Architecture]:
    """All rows by general.architecture, those of draft heads among them."""
    return by_gguf_name() | heads_by_gguf_name()


def by_any_name() -> dict[str, Architecture]:
    """The rows by all that model_type, architectures and auto_map may say of them."""
    return {name: row for row in ARCHITECTURES for name in row.names()}


def class_of(parts: Parts, said: str) -> Architecture | None:
    """The published class that computes a model of these parts; that of the model_type `said` if it can."""
    rows = by_model_type()
    return _first(sorted((row for row in rows.values() if row.computes(parts)), key=lambda row: row.model_type != said))


def gguf_form(parts: Parts, said: str, *, divisors: bool, square: bool = True) -> Architecture | None:
    """The row whose GGUF form holds a model of these parts, and that llama.cpp reads where one does.

    divisors: the rotary frequencies are told by a tensor of divisors. square: its heads together are as wide as the model, which a
    pruned one's need not be. said: its model_type decides between equals.
    """

    def holds(row: Architecture, form: GGUFForm) -> bool:
        bias = parts.attention_bias == row.parts.attention_bias or (parts.attention_bias and form.optional_bias)
        others = (replace(p.without_options(), attention_bias=False) for p in (parts, row.parts))
        return (
            bias
            and next(others) == next(others)
            and (form.scales is not None or not parts.scales)
            and (form.experts or not parts.experts)
        )

    def rank(row: Architecture) -> tuple[bool, bool, bool]:
        assert row.gguf is not None
        unread = (divisors and not row.gguf.divisors) or (row.gguf.square and not square)
        return unread, parts.attention_bias != row.parts.attention_bias, row.model_type != said

    return _first(sorted((row for row in ARCHITECTURES if row.gguf and holds(row, row.gguf)), key=rank))


def _first(rows: Iterable[Architecture]) -> Architecture | None:
    return next(iter(rows), None)


LayerType = Literal["full_attention", "sliding_attention", "linear_attention"]


def layers_of_interval(every: int, layers: int, others: LayerType = "linear_attention") -> tuple[LayerType, ...]:
    """The types of layers of which each `every`-th attends to everything."""
    return tuple(others if (i + 1) % every else "full_attention" for i in range(layers))


WINDOW_INTERVAL = 6  # Gemma 3: each sixth layer sees everything
LOCAL_THETA = 10_000.0  # of layers with a window
NOPE_INTERVAL = 4  # SmolLM3: each fourth layer does not rotate; its files do not say it


def rotating_layers(every: int, layers: int) -> tuple[int, ...]:
    """1 for each layer that rotates q and k, 0 for each `every`-th, in the words of SmolLM3's no_rope_layers."""
    return tuple(int((i + 1) % every != 0) for i in range(layers))


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
DELTA_KEYS = {
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
}
LATENT_KEYS = {
    "q_lora_rank": "attention.q_lora_rank", "kv_lora_rank": "attention.kv_lora_rank", "v_head_dim": "attention.value_length"
}  # fmt: skip
WINDOW, WINDOW_PATTERN, LOCAL_BASE = (
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
)
SOFTCAP = "final_logit_softcapping"
# Also of Gated DeltaNet: all value heads together; every how many layers one attends; rotated pairs of each of the axes.
INNER_SIZE, INTERVAL, SECTIONS = "ssm.inner_size", "full_attention_interval", "rope.dimension_sections"
DRAFT_LAYERS = "nextn_predict_layers"  # of the blocks, those of a draft head, behind all others
# Of draft heads: the layers of the large model whose inputs they read (their number: what the last norm reads), tokens of a block,
# whether the first of them says a token, too, and whether a token of a block does not see those behind it.
TARGET_LAYERS, BLOCK, FROM_ANCHOR, CAUSAL = "target_layers", "block_size", "sample_from_anchor", "attention.causal"
MASK_TOKEN = "tokenizer.ggml.mask_token_id"
MARKOV = "markov_w1.weight"  # of a DSpark head: a token to what it says of the next one
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
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
# Of a layer of Gated DeltaNet, whole names.
DELTA_TENSORS = {
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
EXPERT_TENSORS = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
