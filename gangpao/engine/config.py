"""What a model is: the numbers of its GGUF header as one frozen record. Architectures are rows of formats/architectures.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gangpao.formats.architectures import (
    DELTA_KEYS,
    DRAFT_LAYERS,
    INNER_SIZE,
    INTERVAL,
    KEYS,
    LATENT_KEYS,
    LOCAL_BASE,
    LOCAL_THETA,
    NOPE_INTERVAL,
    SECTIONS,
    SOFTCAP,
    WINDOW,
    WINDOW_INTERVAL,
    WINDOW_PATTERN,
    Architecture,
    GGUFForm,
    by_gguf_name,
    heads_by_gguf_name,
    layers_of_interval,
    models_and_heads,
    rotating_layers,
)
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.formats.layer_sizes import Delta, Latent

# What a sequence is computed with beside the base: (number of an adapter, scale), by number; empty is the base alone.
Mix = tuple[tuple[int, float], ...]
_SOFTMAX = 1  # of llama.cpp's gating functions
RopeKind = Literal["none", "linear", "ntk", "yarn", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary angles stretch past the trained length; `factor` and `original_context` as in the file."""

    kind: RopeKind = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and constants of one model; names are Hugging Face's.

    embedding_scale multiplies embeddings (scale_emb), residual_scale every residual branch (scale_depth / sqrt(layers)),
    logit_scale the final hidden state (dim_model_base / hidden_size). All are 1 outside MiniCPM.
    num_experts: MLPs of intermediate_size, of which a token meets num_experts_per_tok; 0 is one MLP for all tokens.
    layer_types: "full_attention", "sliding_attention" (window) or "linear_attention" (delta) for each layer; empty: all attend to
    everything. window: positions that a token sees there, and local_theta the base of its angles. draft_layers: blocks of a draft
    head behind the layers, which take no part in the model's own answers. rope_sections: rotated pairs that turn by time, row and
    column of a position (M-RoPE); empty: positions are one number. key_bias: whether keys have biases.
    """

    architecture: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_dim: int
    rope_scaling: RopeScaling
    max_position_embeddings: int
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    num_experts: int = 0
    num_experts_per_tok: int = 0
    layer_types: tuple[str, ...] = ()
    delta: Delta | None = None
    latent: Latent | None = None
    draft_layers: int = 0
    window: int = 0
    local_theta: float = LOCAL_THETA
    rope_sections: tuple[int, ...] = ()
    key_bias: bool = False
    name: str = ""

    @property
    def recurrent_layers(self) -> int:
        """How many layers keep a state."""
        return self.layer_types.count("linear_attention")

    def rotates(self, layer: int) -> bool:
        """Whether a layer that attends turns q and k by their positions."""
        return not self.row.parts.nope or bool(rotating_layers(NOPE_INTERVAL, self.num_hidden_layers)[layer])

    @property
    def attention_layers(self) -> int:
        """How many layers have keys and values."""
        return self.num_hidden_layers - self.recurrent_layers

    @property
    def row(self) -> Architecture:
        """The row of the architecture."""
        return models_and_heads()[self.architecture]

    @classmethod
    def from_gguf(cls, gguf: GGUF, head_of: ModelConfig | None = None) -> ModelConfig:
        """Reads and checks the header. head_of: the large model, if the file is a draft head, whose tokens are the model's.

        Raises ModelFileError for an unknown architecture or impossible sizes.
        """
        arch = gguf.get_str("general.architecture")
        known = by_gguf_name() if head_of is None else heads_by_gguf_name()
        row = known.get(arch)
        if row is None or row.gguf is None:
            raise ModelFileError(f"{gguf.path}: architecture '{arch}' is not supported; {_supported(arch, known)}")
        key = {field: f"{arch}.{name}" for field, name in KEYS.items()}
        hidden = gguf.get_int(key["hidden_size"])
        layers = gguf.get_int(key["num_hidden_layers"])
        drafts = gguf.get_int(f"{arch}.{DRAFT_LAYERS}", 0) if row.parts.delta else 0
        layers -= drafts
        heads = gguf.get_int(key["num_attention_heads"])
        kv_heads = gguf.get_int(key["num_key_value_heads"], heads)
        _check_positive(gguf, embedding_length=hidden, block_count=layers, head_count=heads, head_count_kv=kv_heads)
        head_dim = gguf.get_int(key["head_dim"], hidden // heads)
        context = gguf.get_int(key["max_position_embeddings"])
        experts, chosen = _experts(gguf, row.gguf)
        delta = _delta(gguf, arch) if row.parts.delta else None
        config = cls(
            architecture=arch,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=gguf.get_int(key["intermediate_size"]),
            vocab_size=_vocab_size(gguf, hidden) if head_of is None else head_of.vocab_size,
            rms_norm_eps=gguf.get_float(key["rms_norm_eps"]),
            rope_theta=gguf.get_float(key["rope_theta"], 10000.0),
            rope_dim=gguf.get_int(key["rope_dim"], head_dim),
            rope_scaling=_rope_scaling(gguf, arch, context),
            max_position_embeddings=context,
            name=gguf.get_str("general.name", ""),
            **_scales(gguf, row, hidden, layers),
            num_experts=experts,
            num_experts_per_tok=chosen,
            delta=delta,
            draft_layers=drafts,
            latent=_latent(gguf, arch, hidden // heads, head_dim) if row.parts.latent else None,
            **_kinds(gguf, row, layers),
            rope_sections=_sections(gguf, arch) if delta else (),
            key_bias="blk.0.attn_k.bias" in gguf.tensors,
        )
        _check_shape(gguf, config)
        return config


def _supported(arch: str, known: Mapping[str, Architecture]) -> str:
    if arch in heads_by_gguf_name():
        return "it is a draft head, which drafts for the model that it was trained for (--draft FILE)"
    return f"this engine runs {', '.join(sorted(known))}"


def _check_positive(gguf: GGUF, **sizes: int) -> None:
    for name, value in sizes.items():
        if value <= 0:
            raise ModelFileError(f"{gguf.path}: {name} is {value}, it must be positive; the file is damaged")


def _check_shape(gguf: GGUF, c: ModelConfig) -> None:
    _check_positive(
        gguf,
        head_dim=c.head_dim,
        feed_forward_length=c.intermediate_size,
        context_length=c.max_position_embeddings,
        rope_dim=c.rope_dim,
    )
    if c.num_attention_heads % c.num_key_value_heads:
        raise ModelFileError(
            f"{gguf.path}: {c.num_attention_heads} attention heads cannot share {c.num_key_value_heads} key-value heads"
        )
    if c.head_dim % 16:
        raise ModelFileError(f"{gguf.path}: head_dim {c.head_dim} is not a multiple of 16, which our kernels need")
    if c.rope_dim > c.head_dim or c.rope_dim % 2:
        raise ModelFileError(f"{gguf.path}: rope dimension {c.rope_dim} does not fit head_dim {c.head_dim}")
    if not (0 < c.rms_norm_eps < 1 and c.rope_theta > 1 and math.isfinite(c.rope_theta)):
        raise ModelFileError(f"{gguf.path}: rms_norm_eps {c.rms_norm_eps} or rope_theta {c.rope_theta} is out of range")
    if not all(math.isfinite(x) and x > 0 for x in (c.embedding_scale, c.residual_scale, c.logit_scale)):
        raise ModelFileError(f"{gguf.path}: a MiniCPM scale is not a positive number")


def _experts(gguf: GGUF, form: GGUFForm) -> tuple[int, int]:
    """How many experts there are and how many a token meets; 0 and 0 for a dense model.

    Raises ModelFileError where the architecture has none, or other ones than a softmax over all chooses.
    """
    arch = form.name
    count = gguf.get_int(f"{arch}.expert_count", 0)
    if count == 0:
        return 0, 0
    if not form.experts:
        having = sorted(name for name, row in by_gguf_name().items() if row.gguf and row.gguf.experts)
        raise ModelFileError(
            f"{gguf.path}: a mixture of experts in the architecture '{arch}' is not supported; this engine runs experts of "
            f"{', '.join(having)}"
        )
    used = gguf.get_int(f"{arch}.expert_used_count")
    if not 0 < used <= count:
        raise ModelFileError(
            f"{gguf.path}: {arch}.expert_used_count is {used}, and there are {count} experts: the file is damaged"
        )
    for key, plain in (("expert_shared_count", 0), ("expert_gating_func", _SOFTMAX), ("expert_group_count", 1)):
        if (value := gguf.get_int(f"{arch}.{key}", plain)) not in (0, plain):
            raise ModelFileError(
                f"{gguf.path}: {arch}.{key} is {value}, which is not supported: experts are chosen by a softmax over all of them"
            )
    return count, used


def _delta(gguf: GGUF, arch: str) -> Delta:
    sizes = {field: gguf.get_int(f"{arch}.{key}") for field, key in DELTA_KEYS.items()}
    inner = gguf.get_int(f"{arch}.{INNER_SIZE}")
    _check_positive(gguf, **sizes, ssm_inner_size=inner)
    k_heads, v_heads, k_dim = (
        sizes[field] for field in ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim")
    )
    taps = sizes["linear_conv_kernel_dim"]
    if v_heads % k_heads or inner != v_heads * k_dim or k_dim % 16 or not 2 <= taps <= 8:
        raise ModelFileError(
            f"{gguf.path}: {k_heads} key and {v_heads} value heads of {k_dim}, {inner} wide together, with a convolution of {taps} "
            "tokens: not sizes of Gated DeltaNet that we compute (heads in groups, widths in multiples of 16, 2 to 8 tokens)"
        )
    return Delta(k_heads, v_heads, k_dim, k_dim, taps)


def _latent(gguf: GGUF, arch: str, usual: int, head_dim: int) -> Latent:
    """usual: the width of a value head where the file does not say it."""
    rope_dim = gguf.get_int(f"{arch}.{KEYS['rope_dim']}")
    sizes = {
        field: gguf.get_int(f"{arch}.{key}", usual if field == "v_head_dim" else ...)
        for field, key in LATENT_KEYS.items()
    }
    _check_positive(gguf, **sizes)
    if sizes["v_head_dim"] > head_dim or rope_dim >= head_dim:
        raise ModelFileError(
            f"{gguf.path}: heads of {head_dim} of which {rope_dim} turn, and values of {sizes['v_head_dim']}: no latent attention "
            "that we compute (fewer turn than there are, values are no wider than keys)"
        )
    return Latent(sizes["q_lora_rank"], sizes["kv_lora_rank"], sizes["v_head_dim"])


def _kinds(gguf: GGUF, row: Architecture, layers: int) -> dict[str, Any]:
    """The types of the layers, where they are of several, and what windows need."""
    assert row.gguf is not None
    arch, parts = row.gguf.name, row.parts
    if parts.delta:
        every = gguf.get_int(f"{arch}.{INTERVAL}", 4)
        _check_positive(gguf, full_attention_interval=every)
        return {"layer_types": layers_of_interval(every, layers)}
    window = gguf.get_int(f"{arch}.{WINDOW}", 0) if parts.window else 0
    if not window:
        return {}
    every = gguf.get_int(f"{arch}.{WINDOW_PATTERN}", WINDOW_INTERVAL)
    _check_positive(gguf, sliding_window=window, sliding_window_pattern=every)
    return {
        "layer_types": layers_of_interval(every, layers, "sliding_attention"),
        "window": window,
        "local_theta": gguf.get_float(f"{arch}.{LOCAL_BASE}", LOCAL_THETA),
    }


def _sections(gguf: GGUF, arch: str) -> tuple[int, ...]:
    found = gguf.metadata.get(f"{arch}.{SECTIONS}", np.zeros(0, np.int32))
    whole = isinstance(found, np.ndarray) and found.dtype.kind in "iu" and len(found) in (0, 3, 4)
    if not whole or found.min(initial=0) < 0:
        raise ModelFileError(f"{gguf.path}: {arch}.{SECTIONS} must be three or four counts of rotated pairs")
    return tuple(found[:3].tolist())


def _vocab_size(gguf: GGUF, hidden: int) -> int:
    info = gguf.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2 or info.shape[1] != hidden:
        raise ModelFileError(f"{gguf.path}: token_embd.weight [vocabulary, {hidden}] is missing or has another shape")
    return info.shape[0]


def _scales(gguf: GGUF, row: Architecture, hidden: int, layers: int) -> dict[str, Any]:
    """The three scales of an architecture that has them; where the file is silent, those of its row.

    In the file, logit_scale is what logits are divided by: hidden_size / dim_model_base (llama.cpp's converter writes it so).
    """
    form = row.gguf
    assert form is not None
    if row.parts.root_embedding:
        if gguf.get_float(f"{form.name}.{SOFTCAP}", 0.0):
            raise ModelFileError(f"{gguf.path}: {form.name}.{SOFTCAP} bounds the logits, which is not supported")
        return {"embedding_scale": math.sqrt(hidden)}
    silent = form.scales
    if silent is None:
        return {}
    divisor = gguf.get_float(f"{form.name}.logit_scale", hidden / silent.dim_model_base)
    if not (math.isfinite(divisor) and divisor > 0):
        raise ModelFileError(f"{gguf.path}: {form.name}.logit_scale is {divisor}, it must be a positive number")
    return {
        "embedding_scale": gguf.get_float(f"{form.name}.embedding_scale", silent.scale_emb),
        "residual_scale": gguf.get_float(f"{form.name}.residual_scale", silent.scale_depth / math.sqrt(layers)),
        "logit_scale": 1.0 / divisor,
    }


def _rope_scaling(gguf: GGUF, arch: str, context: int) -> RopeScaling:
    key = f"{arch}.rope.scaling"
    kind = gguf.get_str(f"{key}.type", "")
    factor = gguf.get_float(f"{key}.factor", gguf.get_float(f"{arch}.rope.scale_linear", 0.0))
    if not kind:
        kind = "linear" if factor else "none"
    kinds: dict[str, RopeKind] = {
        "none": "none", "linear": "linear", "ntk": "ntk", "yarn": "yarn", "longrope": "longrope"
    }  # fmt: skip
    if kind not in kinds:
        raise ModelFileError(f"{gguf.path}: rope scaling '{kind}' is not supported; known: {', '.join(kinds)}")
    if not math.isfinite(factor) or factor < 0:
        raise ModelFileError(f"{gguf.path}: {key}.factor is {factor}, it must be a positive number")
    return RopeScaling(
        kind=kinds[kind],
        factor=factor or 1.0,
        original_context=gguf.get_int(f"{key}.original_context_length", context),
        attention_factor=gguf.get_float(f"{key}.attn_factor", 1.0),
        beta_fast=gguf.get_float(f"{key}.yarn_beta_fast", 32.0),
        beta_slow=gguf.get_float(f"{key}.yarn_beta_slow", 1.0),
    )
