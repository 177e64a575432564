"""config.json of models that see, as they are published: which row, which numbers, and what is refused."""

from typing import Any

import pytest

from gangpao.formats.vision import VISION
from gangpao.formats.vision.config import processor, read, read_encoder, write

V2: dict[str, Any] = {  # of MiniCPM-V-2, what is about pictures
    "model_type": "minicpmv", "architectures": ["MiniCPMV"], "hidden_size": 2304, "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 256, "drop_vision_last_layer": True, "image_size": 448, "max_slice_nums": 9, "patch_size": 14,
    "query_num": 64, "scale_resolution": 448, "slice_mode": True, "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
}  # fmt: skip
SIGLIP = {
    "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14,
}  # fmt: skip
V26 = {"model_type": "minicpmv", "version": 2.6, "hidden_size": 3584, "query_num": 64, "vision_config": SIGLIP}
V46: dict[str, Any] = {
    "model_type": "minicpmv4_6", "insert_layer_id": 6, "vision_config": SIGLIP, "text_config": {"hidden_size": 1024},
    "downsample_mode": "16x",
}  # fmt: skip
LLAVA: dict[str, Any] = {
    "model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (V2, "minicpm-v-2"), ({**V2, "slice_mode": False}, "minicpm-v-1"), (V26, "minicpm-v-2.6"),
        ({**V26, "version": 4.0}, "minicpm-v-4"), ({**V26, "version": "4.5"}, "minicpm-v-4.5"), (V46, "minicpm-v-4.6"),
        ({**V46, "model_type": "minicpmv4_7"}, "minicpm-v-4.7"), ({"model_type": "omnilmm", "hidden_size": 4096}, "omnilmm-12b"),
    ],
)  # fmt: skip
def test_published_configurations_are_the_rows(data: dict[str, Any], row: str) -> None:
    """Their numbers are the rows' numbers: nothing in a row is a guess."""
    found = read(data)
    assert found is not None
    assert found.vision == VISION[row]
    assert found.text["hidden_size"] in (2304, 3584, 1024, 4096)
    assert not any("vision" in key or "slice" in key for key in found.text)


def test_llava_1_5_is_clip_without_its_last_layer() -> None:
    found = read(LLAVA)
    assert found is not None
    e = found.vision.encoder
    assert (e.layers, e.table, e.prefix_tokens, e.first_norm, e.final_norm, e.patch_bias) == (
        23,
        (24, 24),
        1,
        True,
        False,
        False,
    )
    assert (e.activation, e.eps) == ("quick_gelu", 1e-5)
    assert found.vision.slicing.resolution == 336
    assert (found.text["hidden_size"], found.text["num_hidden_layers"]) == (4096, 32), "what its file is silent about"


def test_what_does_not_see_is_none() -> None:
    assert read({"model_type": "qwen2"}) is None
    assert read({"model_type": 7, "architectures": "LlamaForCausalLM"}) is None
    assert read({}) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({**V26, "version": 9.1}, "9.1"), ({**V26, "version": [2]}, "is not supported"), ({**V26, "version": None}, "None"),
        ({**V2, "vision_encoder": "resnet50"}, "resnet50"), ({**V2, "query_num": "64"}, "query_num"),
        ({**V26, "vision_config": {**SIGLIP, "hidden_size": -1}}, "hidden_size"),
        ({**V26, "vision_config": {**SIGLIP, "hidden_act": "relu"}}, "relu"),
        ({**V26, "vision_config": {**SIGLIP, "num_channels": 1}}, "channels"),
        ({**V26, "slice_config": {"max_slice_nums": 0}}, "max_slice_nums"),
        ({**V46, "downsample_mode": "64x"}, "64x"), ({**V46, "insert_layer_id": 40}, "none of the encoder"),
        ({**V46, "merge_kernel_size": [3, 3]}, "2 x 2"), ({**V46, "text_config": None}, "text_config"),
        ({**LLAVA, "vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({**LLAVA, "vision_feature_select_strategy": "full"}, "class token"),
        ({**LLAVA, "vision_config": {"model_type": "dinov2"}}, "dinov2"),
        ({**LLAVA, "multimodal_projector_bias": False}, "bias"), ({**V2, "image_mean": [0.5], "image_std": [0.5]}, "three numbers"),
        ({**V2, "gangpao_vision": {"name": "x"}}, "gangpao_vision"),
    ],
)  # fmt: skip
def test_what_would_be_computed_wrongly_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(data)


def test_encoders_alone() -> None:
    assert read_encoder({"model_type": "siglip_vision_model"}).table == (14, 14)
    two = read_encoder({"model_type": "siglip2", "vision_config": {"num_patches": 256}})
    assert (two.table, two.stretch) == ((16, 16), "bilinear_antialias")
    with pytest.raises(ValueError, match="resnet"):
        read_encoder({"model_type": "resnet"})


@pytest.mark.parametrize("name", VISION)
def test_what_is_written_is_read(name: str) -> None:
    """With the row's own key where the family's are not enough, and the processor's file beside it."""
    vision, text = (
        VISION[name],
        {"model_type": "llama", "hidden_size": 4096, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1},
    )
    found = read(write(vision, text), processor(vision))
    assert found is not None
    assert found.vision == vision
