"""What a model is: one frozen record with Hugging Face's key names, and a preset for every size we talk about.

Llama, Qwen, MiniCPM, its mixture of experts and MiniCPM3's latent attention are one graph; what differs is data. A whole
optional part (experts, latent attention) is a nested record or None, a small difference is a field with a neutral default.
Nothing in model/ tests a name. `model_type` is kept only because config.json needs it.

A foreign config.json is data as well: keys that change the computation and that we do not implement stop the loading, keys
that are known to change nothing are dropped, unknown keys are an error, and `auto_map` is never followed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from gangpao.config import Frozen

ModelType = Literal["llama", "minicpm", "minicpm3", "qwen2", "qwen3"]


class RopeScaling(Frozen):
    """How rotary angles stretch past the trained length. factor and lists as in config.json."""

    rope_type: Literal["linear", "yarn", "longrope", "llama3"]
    factor: float = Field(1.0, gt=0)
    original_max_position_embeddings: int = Field(0, ge=0)
    attention_factor: float | None = Field(None, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


class MoEConfig(Frozen):
    """Experts in place of the MLP: the router's softmax is taken over all, its top-k is renormalised."""

    num_experts: int = Field(ge=2)
    num_experts_per_tok: int = Field(ge=1)
    router_aux_loss_coef: float = Field(default=0.01, ge=0)

    @model_validator(mode="after")
    def _check(self) -> MoEConfig:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        return self


class MLAConfig(Frozen):
    """Multi-head latent attention (MiniCPM3, DeepSeek-V2): q and kv go through low ranks, RoPE has dims of its own."""

    q_lora_rank: int = Field(ge=1)
    kv_lora_rank: int = Field(ge=1)
    qk_nope_head_dim: int = Field(ge=1)
    qk_rope_head_dim: int = Field(ge=2)
    v_head_dim: int = Field(ge=1)


class ModelConfig(Frozen):
    """Shapes and constants of one model.

    scale_emb multiplies embeddings; scale_depth / sqrt(num_hidden_layers) every residual branch (None: 1); the final hidden
    state is multiplied by dim_model_base / hidden_size (None: 1), whether the head is tied or not. dim_model_base is also
    the base width of the muP rules. initializer_range is init_std at that width.
    """

    model_type: ModelType = "llama"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    max_position_embeddings: int = Field(4096, ge=1)
    rms_norm_eps: float = Field(1e-5, gt=0, lt=1)
    rope_theta: float = Field(10000.0, gt=1)
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    attention_bias: bool = Field(False, description="Biases on q, k and v.")
    qk_norm: bool = Field(False, description="RMSNorm on every head of q and k before RoPE.")
    scale_emb: float = Field(1.0, gt=0)
    scale_depth: float | None = Field(None, gt=0)
    dim_model_base: int | None = Field(None, ge=1)
    initializer_range: float = Field(0.02, gt=0)
    moe: MoEConfig | None = None
    mla: MLAConfig | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.rope_dim % 2:
            raise ValueError(f"RoPE rotates pairs, and {self.rope_dim} dimensions are odd")
        if self.mla and self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                "latent attention has a key for every head: num_key_value_heads must equal num_attention_heads"
            )
        s = self.rope_scaling
        if s and s.rope_type == "longrope" and not len(s.short_factor) == len(s.long_factor) == self.rope_dim // 2:
            raise ValueError(f"longrope needs short_factor and long_factor of {self.rope_dim // 2} numbers each")
        return self

    @property
    def rope_dim(self) -> int:
        """Dimensions of a head that RoPE turns."""
        return self.mla.qk_rope_head_dim if self.mla else self.head_dim

    @property
    def residual_scale(self) -> float:
        """Factor of every residual branch."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers) if self.scale_depth else 1.0

    @property
    def logit_scale(self) -> float:
        """Factor of the final hidden state."""
        return self.dim_model_base / self.hidden_size if self.dim_model_base else 1.0

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """A config.json. Raises ValueError naming the file and the key."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path}: a configuration is a JSON object, this is a {type(data).__name__}")
        try:
            return from_hf(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


# Keys of config.json that describe the file or its use and change nothing that we compute.
_IGNORED = {
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token", "dtype", "eos_token", "hidden_dropout",
    "is_llama_config", "max_window_layers", "mup_denominator", "output_attentions", "output_hidden_states",
    "output_router_logits", "pad_token_id", "pretraining_tp", "return_dict", "rope_parameters", "sliding_window", "tokenizer_class",
    "torch_dtype", "transformers.js_config", "transformers_version", "unk_token_id", "use_cache",
}  # fmt: skip
# Keys that do change it, with the only values we implement. A missing key has the first one.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "sparse_config": (None,),
}
_TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "minicpm": {"tie_word_embeddings": True},
    "minicpm3": {"tie_word_embeddings": True},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
}
_CLASS_NAMES = {
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SCALES = ("scale_emb", "scale_depth", "dim_model_base")
# What transformers takes where the file is silent; ours are other defaults, meant for new models.
_FOREIGN_DEFAULTS = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
_OURS_ALONE = {"attention_bias", "qk_norm", "moe", "mla", "rope_scaling", "head_dim"}


def from_hf(data: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the keys of a config.json. Raises ValueError for what we would compute wrongly."""
    kind = data.get("model_type", "llama")
    if kind not in _TRAITS:
        raise ValueError(f"model_type {kind!r:.60} is not supported; this lab builds {', '.join(_TRAITS)}")
    _refuse_foreign(data, kind)
    fields = ModelConfig.model_fields.keys() - _OURS_ALONE
    out = _FOREIGN_DEFAULTS | _TRAITS[kind] | {k: v for k, v in data.items() if k in fields}
    out |= {"mla": _part(MLAConfig, data), "moe": _part(MoEConfig, data)}
    heads, hidden = data.get("num_attention_heads"), data.get("hidden_size")
    out.setdefault("num_key_value_heads", heads)
    mla = out["mla"]
    given = mla and mla.get("qk_nope_head_dim", 0) + mla.get("qk_rope_head_dim", 0)
    whole = isinstance(heads, int) and isinstance(hidden, int) and heads > 0 and hidden // heads
    out["head_dim"] = given or data.get("head_dim") or whole
    out |= _rope(data)
    return ModelConfig.model_validate(out)


def _refuse_foreign(data: dict[str, Any], kind: str) -> None:
    for key, values in _FIXED.items():
        if key in data and data[key] not in values:
            raise ValueError(f"{key} is {data[key]!r:.60}, and only {values[0]!r} is implemented")
    if bool(data.get("attention_bias")) > bool(_TRAITS[kind].get("attention_bias")):
        raise ValueError("attention_bias is on, which here only qwen2 has (q, k and v, not o)")
    if any(layer != "full_attention" for layer in data.get("layer_types") or ()):
        raise ValueError("layer_types asks for other layers than full_attention, which are not implemented")
    if kind.startswith("minicpm") and (missing := [key for key in _SCALES if key not in data]):
        raise ValueError(
            f"{', '.join(missing)} missing: the class would take 1, which no released MiniCPM uses (12, 1.4 and 256). "
            "Write the three numbers this model was trained with into config.json"
        )
    known = {
        *ModelConfig.model_fields,
        *MLAConfig.model_fields,
        *MoEConfig.model_fields,
        *_IGNORED,
        *_FIXED,
        "layer_types",
    }
    if unknown := sorted(data.keys() - (known - {"moe", "mla", "qk_norm"})):
        raise ValueError(
            f"unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(f'{k!r:.40}' for k in unknown[:4])}: computing without "
            "knowing what they mean could give wrong answers; if they do not matter, remove them in a copy of the file"
        )


def _part(record: type[Frozen], data: dict[str, Any]) -> dict[str, Any] | None:
    """The keys of an optional part, or None where the file has none of them."""
    found = {k: data[k] for k in record.model_fields if data.get(k) is not None}
    return found if found.keys() - {"router_aux_loss_coef"} else None


def _rope(data: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, as transformers 4 and 5 spell them."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError("rope_scaling must be an object or null")
    kind = rope.get("rope_type", rope.get("type", "default"))
    out = {"rope_theta": rope.get("rope_theta") or data.get("rope_theta") or 10000.0, "rope_scaling": None}
    if kind != "default":
        out["rope_scaling"] = {k: v for k, v in rope.items() if k not in ("type", "rope_theta")} | {"rope_type": kind}
    return out


_ROPE_KEYS = {
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    "longrope": ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that transformers, vLLM and `from_hf` understand."""
    data = config.model_dump(exclude=_OURS_ALONE | {"bos_token_id", "eos_token_id"}, exclude_none=True)
    data |= {"architectures": [_CLASS_NAMES[config.model_type]], "hidden_act": "silu", "use_cache": True}
    data |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    s = config.rope_scaling
    data["rope_scaling"] = s and s.model_dump(include={"rope_type", *_ROPE_KEYS[s.rope_type]}, exclude_none=True)
    for part in (config.moe, config.mla):
        data |= part.model_dump() if part else {}
    if not config.mla:
        data["head_dim"] = config.head_dim
    if not config.model_type.startswith("minicpm"):
        data.pop("scale_emb")
    return data


def _minicpm(**fields: Any) -> ModelConfig:
    """A MiniCPM: scales 12, 1.4 and 256, init_std 0.1 at the base width (arXiv:2404.06395, tables 2 and 7)."""
    shared = {
        "model_type": "minicpm",
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "initializer_range": 0.1,
    }
    special = {"bos_token_id": 1, "eos_token_id": 2, "head_dim": 64}
    return ModelConfig.model_validate(shared | special | fields)


def _shape(d: int, ff: int, layers: int, heads: int, kv: int, vocab: int, **fields: Any) -> dict[str, Any]:
    return {
        "hidden_size": d, "intermediate_size": ff, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "vocab_size": vocab, **fields,
    }  # fmt: skip


_V120K, _V70K, _V73K = 122_753, 73_440, 73_448
_MINICPM_2B = _shape(2304, 5760, 40, 36, 36, _V120K)
# Wind tunnel: arXiv:2404.06395 table 8. MiniCPM3 and 4 stretch RoPE with longrope factors that stand only in their
# config.json; a preset has the shape, loading a checkpoint brings the factors.
PRESETS: dict[str, ModelConfig] = {
    "minicpm-9m": _minicpm(**_shape(320, 800, 8, 5, 5, _V120K)),
    "minicpm-30m": _minicpm(**_shape(512, 1280, 12, 8, 8, _V120K)),
    "minicpm-70m": _minicpm(**_shape(640, 1600, 14, 10, 10, _V120K)),
    "minicpm-0.1b": _minicpm(**_shape(768, 1920, 16, 12, 12, _V120K)),
    "minicpm-0.17b": _minicpm(**_shape(896, 2240, 18, 14, 14, _V120K)),
    "minicpm-0.2b": _minicpm(**_shape(1024, 2560, 20, 16, 16, _V120K)),
    "minicpm-0.5b": _minicpm(**_shape(1344, 3360, 24, 21, 21, _V120K)),
    "minicpm-1b": _minicpm(**_shape(1536, 3840, 52, 24, 8, _V70K)),
    "minicpm-2b": _minicpm(**_MINICPM_2B),
    "minicpm-2b-128k": _minicpm(**_MINICPM_2B, tie_word_embeddings=False, max_position_embeddings=131_072),
    "minicpm-moe-8x2b": _minicpm(**_MINICPM_2B, moe=MoEConfig(num_experts=8, num_experts_per_tok=2)),
    "minicpm3-4b": _minicpm(
        **_shape(2560, 6400, 62, 40, 40, _V73K), model_type="minicpm3", head_dim=96, max_position_embeddings=32_768,
        mla=MLAConfig(q_lora_rank=768, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64),
    ),
    "minicpm4-0.5b": _minicpm(**_shape(1024, 4096, 24, 16, 2, _V73K), rms_norm_eps=1e-6, max_position_embeddings=32_768),
    "minicpm4-8b": _minicpm(
        **_shape(4096, 16_384, 32, 32, 2, _V73K), head_dim=128, rms_norm_eps=1e-6, max_position_embeddings=32_768,
        tie_word_embeddings=False,
    ),
    "minicpm5-1b": ModelConfig(
        **_shape(1536, 4608, 24, 16, 2, 130_560), head_dim=128, rms_norm_eps=1e-6, rope_theta=5e6, tie_word_embeddings=False,
        max_position_embeddings=131_072, bos_token_id=0, eos_token_id=(1, 130_073),
    ),
    "smollm2-135m": ModelConfig(
        **_shape(576, 1536, 30, 9, 3, 49_152), head_dim=64, rope_theta=1e5, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=2,
    ),
    "qwen2.5-0.5b": ModelConfig(
        model_type="qwen2", **_shape(896, 4864, 24, 14, 2, 151_936), head_dim=64, rms_norm_eps=1e-6, rope_theta=1e6,
        attention_bias=True, max_position_embeddings=32_768, bos_token_id=151_643, eos_token_id=151_645,
    ),
    "qwen2.5-1.5b": ModelConfig(
        model_type="qwen2", **_shape(1536, 8960, 28, 12, 2, 151_936), head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6,
        attention_bias=True, max_position_embeddings=32_768, bos_token_id=151_643, eos_token_id=151_645,
    ),
}  # fmt: skip
