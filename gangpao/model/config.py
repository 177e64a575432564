"""What a model is: one frozen record with Hugging Face's key names, and a preset for every size we talk about.

Llama, Qwen, MiniCPM, its mixture of experts and MiniCPM3's latent attention are one graph; what differs is data. A whole
optional part (experts, latent attention) is a nested record or None, a small difference is a field with a neutral default.
Which class of others computes a model is a row of formats/architectures.py, chosen by value. `model_type` is only what
config.json will say: it follows the values where a name cannot say them, so a Llama with MiniCPM's scales is a MiniCPM.

A foreign config.json is data as well, read by `foreign`.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from gangpao.config import Frozen
from gangpao.formats.architectures import Architecture, LayerType, Parts, by_model_type, layers_of_interval
from gangpao.formats.architectures import class_of as class_of_parts
from gangpao.model import foreign


def _is_known(name: str) -> str:
    if name not in (known := by_model_type()):
        raise ValueError(f"model_type {name!r:.60} is not one that this lab builds; there are {', '.join(known)}")
    return name


ModelType = Annotated[str, AfterValidator(_is_known)]
Stretch = Annotated[float, Field(gt=0)]
log = logging.getLogger("gangpao.model")


class RopeScaling(Frozen):
    """How rotary angles stretch past the trained length. factor and lists as in config.json.

    dynamic counts from max_position_embeddings, and is no scaling up to there.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    rope_type: Literal["linear", "dynamic", "yarn", "longrope", "llama3"]
    factor: float = Field(1.0, gt=0)
    original_max_position_embeddings: int = Field(0, ge=0)
    attention_factor: float | None = Field(None, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    short_factor: tuple[Stretch, ...] = ()
    long_factor: tuple[Stretch, ...] = ()


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


class DeltaConfig(Frozen):
    """Gated DeltaNet (arXiv:2412.06464), the recurrent layers of Qwen3.5: a short convolution, a decay, a state for each head."""

    linear_conv_kernel_dim: int = Field(4, ge=2)
    linear_key_head_dim: int = Field(ge=1)
    linear_value_head_dim: int = Field(ge=1)
    linear_num_key_heads: int = Field(ge=1)
    linear_num_value_heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> DeltaConfig:
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"linear_num_value_heads {self.linear_num_value_heads} is not a multiple of linear_num_key_heads "
                f"{self.linear_num_key_heads}"
            )
        return self

    @property
    def key_size(self) -> int:
        """Width of all keys of a token, and of all queries."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_size(self) -> int:
        """Width of all values of a token."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size


class SparseConfig(Frozen):
    """The block-sparse attention (InfLLM-V2) that MiniCPM4 and 4.1 may use on long texts: kept, and computed densely.

    Up to dense_len positions the checkpoint's own code is dense too, so there it is the same.
    """

    kernel_size: int = Field(32, ge=1)
    kernel_stride: int = Field(16, ge=1)
    init_blocks: int = Field(1, ge=0)
    block_size: int = Field(64, ge=1)
    window_size: int = Field(2048, ge=1)
    topk: int = Field(64, ge=1)
    use_nope: bool = False
    dense_len: int = Field(8192, ge=0)


class ModelConfig(Frozen):
    """Shapes and constants of one model.

    scale_emb multiplies embeddings; scale_depth / sqrt(num_hidden_layers) every residual branch (None: 1); the final hidden
    state is multiplied by dim_model_base / hidden_size (None: 1), whether the head is tied or not. dim_model_base is also
    the base width of the muP rules. initializer_range is init_std at that width. layer_types says for every layer whether it
    attends or keeps a state (delta); empty: all attend. partial_rotary_factor: the share of a head that RoPE turns.
    mrope_section: how many of its pairs turn by time, row and column where positions have all three. tensor_prefix is what
    stands before the names of the language model's tensors in a checkpoint that holds more than that.
    """

    model_config = ConfigDict(allow_inf_nan=False)

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
    attention_gate: bool = Field(False, description="q_proj gives a gate beside each head of q.")
    centred_norms: bool = Field(False, description="Norms multiply by 1 + weight.")
    no_rope_layers: tuple[int, ...] = Field(
        (), description="For each layer 1 where it rotates, 0 where not; empty: all do."
    )
    sliding_window: int | None = Field(None, ge=1, description="Positions that layers of sliding_attention see.")
    rope_local_base_freq: float = Field(10000.0, gt=1, description="Base of the angles of layers of sliding_attention.")
    post_norms: bool = Field(False, description="A norm behind each branch as well.")
    gelu: bool = Field(False, description="GELU by the tangent in the MLP, for SiLU.")
    root_embedding: bool = Field(False, description="Embeddings times sqrt(hidden_size).")
    partial_rotary_factor: float = Field(1.0, gt=0, le=1)
    mrope_section: tuple[int, int, int] | None = None
    layer_types: tuple[LayerType, ...] = ()
    delta: DeltaConfig | None = None
    scale_emb: float = Field(1.0, gt=0)
    scale_depth: float | None = Field(None, gt=0)
    dim_model_base: int | None = Field(None, ge=1)
    initializer_range: float = Field(0.02, gt=0)
    moe: MoEConfig | None = None
    mla: MLAConfig | None = None
    sparse_config: SparseConfig | None = None
    tensor_prefix: str | None = None
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
            raise ValueError("latent attention has a key for every head: num_key_value_heads is num_attention_heads")
        self._check_layers()
        s = self.rope_scaling
        if s and s.rope_type == "longrope" and not len(s.short_factor) == len(s.long_factor) == self.rope_dim // 2:
            raise ValueError(f"longrope needs short_factor and long_factor of {self.rope_dim // 2} numbers each")
        if s and s.rope_type == "dynamic" and self.rope_dim == 2:
            raise ValueError("dynamic scaling is not defined for 2 rotated dimensions")
        if family := class_of(self):  # a frozen record is set once more, before anybody has seen it
            object.__setattr__(self, "model_type", family.model_type)
        return self

    def _check_layers(self) -> None:
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, there are {self.num_hidden_layers}")
        if ("linear_attention" in self.layer_types) != (self.delta is not None):
            raise ValueError("layers of linear_attention and linear_key_head_dim ... (Gated DeltaNet) belong together")
        if self.no_rope_layers and len(self.no_rope_layers) != self.num_hidden_layers:
            named = len(self.no_rope_layers)
            raise ValueError(f"no_rope_layers names {named} layers, there are {self.num_hidden_layers}")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layers of sliding_attention need a sliding_window")
        if self.mrope_section and sum(self.mrope_section) > self.rope_dim // 2:
            raise ValueError(f"mrope_section {self.mrope_section} is more than the {self.rope_dim // 2} rotated pairs")
        if self.mla and (self.layer_types or self.attention_gate or self.partial_rotary_factor != 1.0):
            raise ValueError("latent attention goes together with neither gates, other layers nor partial rotation")

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """The type of every layer."""
        plain: LayerType = "full_attention"
        return self.layer_types or (plain,) * self.num_hidden_layers

    def rotates(self, layer: int) -> bool:
        """Whether a layer that attends turns q and k by their positions."""
        return not self.no_rope_layers or bool(self.no_rope_layers[layer])

    @property
    def attention_layers(self) -> int:
        """How many layers attend, and have keys and values in a cache."""
        return self.num_hidden_layers - self.kinds.count("linear_attention")

    @property
    def parts(self) -> Parts:
        """What this model's graph has, by its values."""
        return Parts(
            scales=(self.scale_emb, self.scale_depth, self.dim_model_base) != (1.0, None, None),
            experts=self.moe is not None or self.sparse_config is not None,  # one class has both
            latent=self.mla is not None,
            attention_bias=self.attention_bias,
            qk_norm=self.qk_norm,
            delta=self.delta is not None,
            attention_gate=self.attention_gate,
            centred_norms=self.centred_norms,
            nope=0 in self.no_rope_layers,
            window="sliding_attention" in self.layer_types,
            post_norms=self.post_norms,
            gelu=self.gelu,
            root_embedding=self.root_embedding,
        )

    @property
    def plain(self) -> bool:
        """Whether every layer is grouped-query attention without a gate, and an MLP."""
        return not (self.moe or self.mla or self.delta or self.attention_gate or self.post_norms or self.gelu)

    @property
    def rope_dim(self) -> int:
        """Dimensions of a head that RoPE turns."""
        return self.mla.qk_rope_head_dim if self.mla else int(self.head_dim * self.partial_rotary_factor)

    @property
    def heads_fill_width(self) -> bool:
        """Whether the heads together are as wide as the model, which those of a pruned one need not be."""
        return self.num_attention_heads * self.head_dim == self.hidden_size

    @property
    def embedding_scale(self) -> float:
        """Factor of embeddings."""
        return math.sqrt(self.hidden_size) if self.root_embedding else self.scale_emb

    @property
    def residual_scale(self) -> float:
        """Factor of every residual branch."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers) if self.scale_depth else 1.0

    @property
    def logit_scale(self) -> float:
        """Factor of the final hidden state."""
        return self.dim_model_base / self.hidden_size if self.dim_model_base else 1.0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What whoever loads this model should know: where our numbers may differ from the checkpoint's own code."""
        out = []
        if self.sparse_config:
            out.append(
                f"attention is dense here; past {self.sparse_config.dense_len:,} positions this checkpoint's own code may take "
                "its block-sparse attention, whose numbers differ"
            )
        if self.tensor_prefix:
            out.append(f"only the language model ({self.tensor_prefix}*) of a model that sees; pictures are not read")
        return tuple(out)

    @classmethod
    def from_file(cls, path: Path, *, say: bool = True) -> ModelConfig:
        """A config.json. say: log the remarks. Raises ValueError naming the file and the key."""
        config = cls._read(path)
        for remark in config.remarks if say else ():
            log.warning("%s: %s", path, remark)
        return config

    @classmethod
    def _read(cls, path: Path) -> ModelConfig:
        data = json_object(path)
        try:
            return from_hf(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def json_object(path: Path) -> dict[str, Any]:
    """What a configuration file holds. Raises ValueError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a configuration is a JSON object, this is a {type(data).__name__}")
    return data


_OURS_ALONE = {
    "attention_bias", "qk_norm", "moe", "mla", "rope_scaling", "head_dim", "tensor_prefix", "attention_gate", "centred_norms",
    "partial_rotary_factor", "mrope_section", "layer_types", "delta", "no_rope_layers", "sliding_window",
    "rope_local_base_freq", "post_norms", "gelu", "root_embedding",
}  # fmt: skip
# Where a model that no published class computes is kept in config.json: other programs then refuse it by its model_type.
_OURS = "gangpao"


def from_hf(data: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the keys of a config.json. Raises ValueError for what we would compute wrongly."""
    if data.get("model_type") == _OURS:
        return ModelConfig.model_validate(data.get(_OURS))
    return ModelConfig.model_validate(foreign.fields(data))


def class_of(config: ModelConfig) -> Architecture | None:
    """The published class that computes this model, by its values; the one of its model_type if that can."""
    return class_of_parts(config.parts, config.model_type)


_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    "longrope": ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that transformers, vLLM and `from_hf` understand.

    The class is chosen by value: whatever reads the file computes this model. Where no published class does, the file has
    a model_type of ours, which others refuse.
    """
    family = class_of(config)
    if family is None:
        return {
            "model_type": _OURS,
            "architectures": ["GangpaoForCausalLM"],
            _OURS: config.model_dump(mode="json", exclude={"tensor_prefix"}, exclude_none=True),
        }
    data = config.model_dump(exclude=_OURS_ALONE | {"bos_token_id", "eos_token_id"}, exclude_none=True)
    data |= {"model_type": family.model_type, "architectures": [family.class_name]}
    data |= {"hidden_act": "silu", "use_cache": True}
    data |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    s = config.rope_scaling
    data["rope_scaling"] = s and s.model_dump(include={"rope_type", *_ROPE_KEYS[s.rope_type]}, exclude_none=True)
    for part in (config.moe, config.mla, config.delta):
        data |= part.model_dump() if part else {}
    if config.delta:
        del data["rope_theta"], data["rope_scaling"]
        data |= {
            "layer_types": list(config.kinds),
            "attn_output_gate": True,
            "rope_parameters": _rope_parameters(config),
        }
    if config.parts.window:
        data |= {"layer_types": list(config.kinds), "sliding_window": config.sliding_window}
        data |= {"rope_local_base_freq": config.rope_local_base_freq, "query_pre_attn_scalar": config.head_dim}
    if config.gelu:
        del data["hidden_act"]
        data["hidden_activation"] = "gelu_pytorch_tanh"
    if config.no_rope_layers or config.gelu:  # these classes take a padding token that a vocabulary may not have
        data["pad_token_id"] = None
    if config.no_rope_layers:
        data["no_rope_layers"] = list(config.no_rope_layers)
    if not config.mla:
        data["head_dim"] = config.head_dim
    if (
        family.parts.scales
    ):  # neutral ones are numbers too: OpenBMB's class cannot compute with null, and would take 1 for none
        data.setdefault("scale_depth", math.sqrt(config.num_hidden_layers))
        data.setdefault("dim_model_base", config.hidden_size)
    else:
        data.pop("scale_emb")
    return data


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The form of transformers 5, which alone has sections; the older keys would say it twice."""
    scaling = config.rope_scaling
    one = (
        scaling.model_dump(include={"rope_type", *_ROPE_KEYS[scaling.rope_type]}, exclude_none=True) if scaling else {}
    )
    one = {"rope_type": "default", "rope_theta": config.rope_theta} | one
    one["partial_rotary_factor"] = config.partial_rotary_factor
    if config.mrope_section:
        one |= {"mrope_section": list(config.mrope_section), "mrope_interleaved": True}
    return one


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
    "minicpm4.1-8b": _minicpm(
        **_shape(4096, 16_384, 32, 32, 2, _V73K), head_dim=128, rms_norm_eps=1e-6, max_position_embeddings=65_536,
        tie_word_embeddings=False, sparse_config=SparseConfig(),
    ),
    "bitcpm4-1b": _minicpm(**_shape(1536, 3840, 52, 24, 8, _V73K), max_position_embeddings=32_768),
    "minicpm5-1b": ModelConfig(
        **_shape(1536, 4608, 24, 16, 2, 130_560), head_dim=128, rms_norm_eps=1e-6, rope_theta=5e6, tie_word_embeddings=False,
        max_position_embeddings=131_072, bos_token_id=0, eos_token_id=(1, 130_073),
    ),
    "minicpm5-2b": ModelConfig(
        **_shape(2048, 6144, 42, 16, 2, 130_560), head_dim=128, rms_norm_eps=1e-6, rope_theta=5e6, tie_word_embeddings=False,
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
    "qwen3.5-0.8b": ModelConfig(
        model_type="qwen3_5_text", **_shape(1024, 3584, 24, 8, 2, 248_320), head_dim=256, rms_norm_eps=1e-6, rope_theta=1e7,
        qk_norm=True, attention_gate=True, centred_norms=True, partial_rotary_factor=0.25, mrope_section=(11, 11, 10),
        layer_types=layers_of_interval(4, 24), max_position_embeddings=262_144, eos_token_id=248_044,
        delta=DeltaConfig(linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=16),
    ),
}  # fmt: skip
