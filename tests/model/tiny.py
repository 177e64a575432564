"""Small configurations with every knob away from its neutral value."""

from gangpao.model.config import DeltaConfig, MLAConfig, ModelConfig, MoEConfig

SHAPE = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 2e-5, "rope_theta": 5000.0,
}  # fmt: skip
SCALES = {"model_type": "minicpm", "scale_emb": 7.5, "scale_depth": 1.1, "dim_model_base": 16, "initializer_range": 0.1}


def tiny(kind: str = "minicpm", **fields) -> ModelConfig:
    """minicpm, llama, qwen2, qwen3, moe, mla, nope, window or delta."""
    base = {
        "llama": {"initializer_range": 0.08},
        "minicpm": SCALES,
        "qwen2": {"model_type": "qwen2", "attention_bias": True, "initializer_range": 0.08},
        "qwen3": {"model_type": "qwen3", "qk_norm": True, "initializer_range": 0.08},
        "moe": SCALES | {"moe": MoEConfig(num_experts=4, num_experts_per_tok=2)},
        "mla": SCALES
        | {
            "model_type": "minicpm3",
            "num_key_value_heads": 4,
            "head_dim": 24,
            "mla": MLAConfig(q_lora_rank=24, kv_lora_rank=20, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12),
        },
        "nope": {"model_type": "smollm3", "initializer_range": 0.08, "num_hidden_layers": 4, "no_rope_layers": (1, 1, 1, 0)},
        "window": {
            "model_type": "gemma3_text", "num_hidden_layers": 6, "initializer_range": 0.08, "qk_norm": True, "centred_norms": True,
            "layer_types": ("sliding_attention",) * 5 + ("full_attention",), "sliding_window": 9, "post_norms": True, "gelu": True,
            "root_embedding": True, "rope_local_base_freq": 700.0,
        },
        "delta": {
            "model_type": "qwen3_5_text", "num_hidden_layers": 4, "initializer_range": 0.08, "qk_norm": True,
            "attention_gate": True, "centred_norms": True, "partial_rotary_factor": 0.5, "mrope_section": (2, 1, 1),
            "layer_types": ("linear_attention", "linear_attention", "full_attention", "linear_attention"),
            "delta": DeltaConfig(
                linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4
            ),
        },
    }[kind]  # fmt: skip
    return ModelConfig(**(SHAPE | base | fields))


KINDS = ("llama", "minicpm", "qwen2", "qwen3", "moe", "mla", "nope", "window", "delta")
