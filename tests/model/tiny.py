"""Small configurations with every knob away from its neutral value."""

from gangpao.model.config import MLAConfig, ModelConfig, MoEConfig

SHAPE = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 2e-5, "rope_theta": 5000.0,
}  # fmt: skip
SCALES = {"model_type": "minicpm", "scale_emb": 7.5, "scale_depth": 1.1, "dim_model_base": 16, "initializer_range": 0.1}


def tiny(kind: str = "minicpm", **fields) -> ModelConfig:
    """minicpm, llama, qwen2, qwen3, moe or mla."""
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
    }[kind]
    return ModelConfig(**(SHAPE | base | fields))


KINDS = ("llama", "minicpm", "qwen2", "qwen3", "moe", "mla")
