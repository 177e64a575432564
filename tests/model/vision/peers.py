"""transformers' classes with random weights, small, for comparisons; each test skips where they are absent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100,
}  # fmt: skip
QWEN = {
    **TEXT, "model_type": "qwen3_5_text", "num_hidden_layers": 4, "head_dim": 32, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1],
    },
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}


def randomized(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter drawn anew, as wide as makes every part matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        std = 0.2 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, std, generator=generator)
    return model.eval()


def minicpm_v(version: str, **changes: Any) -> Any:
    """MiniCPM-V 4.6 or 4.7 ("4_6", "4_7") with its language model."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"MiniCPMV{version}ForConditionalGeneration"):
        pytest.skip(f"this transformers has no MiniCPM-V {version}")
    config = getattr(transformers, f"MiniCPMV{version}Config")(
        **{
            "vision_config": {**VISION, "image_size": 980, "patch_size": 14},
            "text_config": QWEN, "insert_layer_id": 1, "image_token_id": 99, "video_token_id": 98,
            **changes,
        }
    )  # fmt: skip
    return randomized(getattr(transformers, f"MiniCPMV{version}ForConditionalGeneration")(config))


def llava(encoder: str) -> Any:
    """LLaVA with "clip" or "siglip" and a Llama."""
    transformers = pytest.importorskip("transformers")
    shape = {**VISION, "image_size": 28, "patch_size": 7}
    vision = {"clip": transformers.CLIPVisionConfig, "siglip": transformers.SiglipVisionConfig}[encoder](**shape)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=99,
        vision_feature_select_strategy="default" if encoder == "clip" else "full",
    )
    return randomized(transformers.LlavaForConditionalGeneration(config))


def saved(model: Any, folder: Path) -> Path:
    """The folder that transformers writes."""
    model.save_pretrained(folder)
    return folder
