"""What a model is: the numbers of its GGUF header as one frozen record. Architectures are rows of formats/architectures.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gangpao.formats.architectures import KEYS, Architecture, GGUFForm, by_gguf_name
from gangpao.formats.gguf import GGUF, ModelFileError

# What a sequence is computed with beside the base: (number of an adapter, scale), by number; empty is the base alone.
Mix = tuple[tuple[int, float], ...]
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
    name: str = ""

    @property
    def row(self) -> Architecture:
        """The row of the architecture."""
        return by_gguf_name()[self.architecture]

    @classmethod
    def from_gguf(cls, gguf: GGUF) -> ModelConfig:
        """Reads and checks the header. Raises ModelFileError for an unknown architecture or impossible sizes."""
        arch = gguf.get_str("general.architecture")
        known = by_gguf_name()
        row = known.get(arch)
        if row is None or row.gguf is None:
            raise ModelFileError(
                f"{gguf.path}: architecture '{arch}' is not supported; this engine runs {', '.join(sorted(known))}"
            )
        key = {field: f"{arch}.{name}" for field, name in KEYS.items()}
        if gguf.get_int(f"{arch}.expert_count", 0):
            raise ModelFileError(f"{gguf.path}: mixture-of-experts models are not supported yet; take a dense model")
        hidden = gguf.get_int(key["hidden_size"])
        layers = gguf.get_int(key["num_hidden_layers"])
        heads = gguf.get_int(key["num_attention_heads"])
        kv_heads = gguf.get_int(key["num_key_value_heads"], heads)
        _check_positive(gguf, embedding_length=hidden, block_count=layers, head_count=heads, head_count_kv=kv_heads)
        head_dim = gguf.get_int(key["head_dim"], hidden // heads)
        context = gguf.get_int(key["max_position_embeddings"])
        config = cls(
            architecture=arch,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=gguf.get_int(key["intermediate_size"]),
            vocab_size=_vocab_size(gguf, hidden),
            rms_norm_eps=gguf.get_float(key["rms_norm_eps"]),
            rope_theta=gguf.get_float(key["rope_theta"], 10000.0),
            rope_dim=gguf.get_int(key["rope_dim"], head_dim),
            rope_scaling=_rope_scaling(gguf, arch, context),
            max_position_embeddings=context,
            name=gguf.get_str("general.name", ""),
            **_scales(gguf, row.gguf, hidden, layers),
        )
        _check_shape(gguf, config)
        return config


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


def _vocab_size(gguf: GGUF, hidden: int) -> int:
    info = gguf.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2 or info.shape[1] != hidden:
        raise ModelFileError(f"{gguf.path}: token_embd.weight [vocabulary, {hidden}] is missing or has another shape")
    return info.shape[0]


def _scales(gguf: GGUF, form: GGUFForm, hidden: int, layers: int) -> dict[str, float]:
    """The three scales of an architecture that has them; where the file is silent, those of its row.

    In the file, logit_scale is what logits are divided by: hidden_size / dim_model_base (llama.cpp's converter writes it so).
    """
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
