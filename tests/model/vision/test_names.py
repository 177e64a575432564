"""Official names: the 694 tensors of MiniCPM-V 2.0, and every family there and back."""

import re

import pytest
import torch

from gangpao.formats.vision import VISION
from gangpao.model.config import PRESETS
from gangpao.model.transformer import Transformer
from gangpao.model.vision.names import NAMES, to_official, to_ours
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.pictures import small

# Of MiniCPM-V-2, from its index file of 2024-04: what stands outside of layers and in the first of each kind, with shapes that its
# classes give (timm 1.0.31 on the meta device). The layers' numbers and the sum are checked below.
V2 = {
    "vpm.pos_embed": (1, 729, 1152), "vpm.patch_embed.proj.weight": (1152, 3, 14, 14), "vpm.patch_embed.proj.bias": (1152,),
    "vpm.norm.weight": (1152,), "vpm.norm.bias": (1152,),
    "vpm.blocks.{i}.norm1.weight": (1152,), "vpm.blocks.{i}.norm1.bias": (1152,),
    "vpm.blocks.{i}.attn.qkv.weight": (3456, 1152), "vpm.blocks.{i}.attn.qkv.bias": (3456,),
    "vpm.blocks.{i}.attn.proj.weight": (1152, 1152), "vpm.blocks.{i}.attn.proj.bias": (1152,),
    "vpm.blocks.{i}.norm2.weight": (1152,), "vpm.blocks.{i}.norm2.bias": (1152,),
    "vpm.blocks.{i}.mlp.fc1.weight": (4304, 1152), "vpm.blocks.{i}.mlp.fc1.bias": (4304,),
    "vpm.blocks.{i}.mlp.fc2.weight": (1152, 4304), "vpm.blocks.{i}.mlp.fc2.bias": (1152,),
    "resampler.query": (64, 2304), "resampler.pos_embed": (64, 2304), "resampler.proj": (2304, 2304),
    "resampler.kv_proj.weight": (2304, 1152), "resampler.attn.in_proj_weight": (6912, 2304), "resampler.attn.in_proj_bias": (6912,),
    "resampler.attn.out_proj.weight": (2304, 2304), "resampler.attn.out_proj.bias": (2304,),
    "resampler.ln_q.weight": (2304,), "resampler.ln_q.bias": (2304,), "resampler.ln_kv.weight": (2304,),
    "resampler.ln_kv.bias": (2304,), "resampler.ln_post.weight": (2304,), "resampler.ln_post.bias": (2304,),
    "llm.model.embed_tokens.weight": (122753, 2304), "llm.lm_head.weight": (122753, 2304), "llm.model.norm.weight": (2304,),
    "llm.model.layers.{i}.input_layernorm.weight": (2304,), "llm.model.layers.{i}.post_attention_layernorm.weight": (2304,),
    "llm.model.layers.{i}.self_attn.q_proj.weight": (2304, 2304), "llm.model.layers.{i}.self_attn.k_proj.weight": (2304, 2304),
    "llm.model.layers.{i}.self_attn.v_proj.weight": (2304, 2304), "llm.model.layers.{i}.self_attn.o_proj.weight": (2304, 2304),
    "llm.model.layers.{i}.mlp.gate_proj.weight": (5760, 2304), "llm.model.layers.{i}.mlp.up_proj.weight": (5760, 2304),
    "llm.model.layers.{i}.mlp.down_proj.weight": (2304, 5760),
}  # fmt: skip


def test_minicpm_v_2_has_its_694_tensors() -> None:
    """Names, shapes and the exact count, 3,434,965,792, on the meta device."""
    text = PRESETS["minicpm-2b"].model_copy(update={"tie_word_embeddings": False, "vocab_size": 122753})
    with torch.device("meta"):
        tower, language = VisionTower(VISION["minicpm-v-2"], 2304), Transformer(text)
    ours = dict(tower.named_parameters()) | {f"language.{name}": p for name, p in language.named_parameters()}
    official = to_official(NAMES["minicpm-v-2"], ours, 14)
    expected = {}
    for name, shape in V2.items():
        layers = 26 if name.startswith("vpm") else 40
        for i in range(layers) if "{i}" in name else [0]:
            expected[name.replace("{i}", str(i))] = shape
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == expected
    assert len(official) == 694
    assert sum(tensor.numel() for tensor in official.values()) == 3_434_965_792
    assert sum(p.numel() for p in tower.encoder.parameters()) == 397_747_744
    assert sum(p.numel() for p in tower.merger.parameters()) == 29_514_240


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_goes_there_and_back(name: str) -> None:
    tower = VisionTower.build(small(name), 64)
    ours = dict(tower.state_dict()) | {"language.model.norm.weight": torch.ones(3)}
    official = to_official(NAMES[name], ours, 14)
    assert not any(re.match(r"encoder\.|merger\.", key) for key in official)
    back = dict(to_ours(NAMES[name], official.items()))
    assert back.keys() == ours.keys()
    for key, tensor in ours.items():
        assert torch.equal(back[key], tensor), key


def test_eva_has_its_biases_beside_the_product() -> None:
    official = to_official(NAMES["omnilmm-12b"], VisionTower.build(small("omnilmm-12b"), 64).state_dict(), 14)
    first = {key.rpartition("attn.")[2] for key in official if key.startswith("model.vision_tower.blocks.0.attn.")}
    assert first == {"qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias"}
    assert official["model.vision_tower.cls_token"].shape == (1, 1, 32)
    assert official["model.vision_tower.pos_embed"].shape == (1, 257, 32)


def test_a_tensor_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no name for it"):
        to_official(NAMES["minicpm-v-2"], {"encoder.window_merger.linear_1.weight": torch.ones(1)}, 14)


def test_old_spellings_are_known() -> None:
    """LLaVA before transformers 5 has one more part in the names of its encoder."""
    (found,) = to_ours(NAMES["llava"], [("vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias", torch.ones(2))])
    assert found[0] == "encoder.layers.3.mlp.fc1.bias"
