"""Folders of every family there and back, and folders that do not belong together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gangpao.formats.vision import VISION, VisionModel
from gangpao.images.slices import pieces, sizes
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.model.vision.load import described, load_encoder, load_vision, save_vision
from gangpao.model.vision.splice import VisionLanguage
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.peers import llava, minicpm_v, saved
from tests.model.vision.pictures import piece, small

WIDTH = 128
PLAIN: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "minicpm": {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 32},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "mistral": {"model_type": "llama"},
}
FLAT = ("minicpm-v-1", "minicpm-v-2", "minicpm-v-2.6", "minicpm-v-4", "minicpm-v-4.5", "omnilmm-12b", "llava")


def language(vision: VisionModel) -> Transformer:
    return Transformer.build(ModelConfig(**({"model_type": vision.text} | PLAIN | TEXTS.get(vision.text, {}))), seed=4)


@pytest.mark.parametrize("name", FLAT)
def test_a_folder_goes_there_and_back(name: str, tmp_path: Path) -> None:
    """The row whole, both models bit by bit, under official names, in several files; and the language model alone."""
    row = small(name)
    row = replace(row, merger=replace(row.merger, head_dim=128))  # as the family has it
    tower, text = VisionTower.build(row, WIDTH, seed=3), language(row)
    save_vision(tmp_path / "folder", tower, text, shard_bytes=300_000)
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    vision, again, words = load_vision(tmp_path / "folder")
    assert vision == row
    assert words is not None
    for mine, other in ((tower, again), (text, words)):
        found = dict(other.named_parameters())
        for key, parameter in mine.named_parameters():
            assert torch.equal(found.pop(key), parameter), key
            assert found.keys().isdisjoint([key])
        assert found == {}
    ids, one = torch.tensor([[1] + [0] * 64 + [7, 8]]), piece(4, 8)
    if row.merger.kind == "resampler":
        with torch.no_grad():
            a, b = (VisionLanguage(t, w)(ids, [one], [(0, 1)]).hidden for t, w in ((tower, text), (again, words)))
        assert torch.equal(a, b)
    alone = weights.load(tmp_path / "folder")
    assert torch.equal(alone.lm_head.weight, text.lm_head.weight)


def test_a_row_of_our_own_is_kept_whole(tmp_path: Path) -> None:
    """What no published configuration says: narrow heads of the resampler, another number of slices, another filter."""
    row = small("minicpm-v-2")
    row = replace(row, merger=replace(row.merger, head_dim=16, queries=25), slicing=replace(row.slicing, max_slices=4))
    save_vision(tmp_path / "own", VisionTower.build(row, WIDTH), language(row))
    assert load_vision(tmp_path / "own", language=False)[0] == row
    data = json.loads((tmp_path / "own" / "config.json").read_text())
    assert data["gangpao_vision"]["merger"]["head_dim"] == 16
    data["gangpao_vision"]["merger"]["kind"] = "magic"
    (tmp_path / "own" / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"gangpao_vision\.merger\.kind"):
        described(tmp_path / "own")


def test_the_processor_that_we_write_gives_our_pixels(tmp_path: Path) -> None:
    """transformers' image processor, told by our folder, and images/slices.py: the same numbers."""
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (45, 61, 3), dtype=np.uint8)
    for kind in ("clip", "siglip"):
        peer = llava(kind)
        vision, tower, text = load_vision(saved(peer, tmp_path / f"peer-{kind}"))
        assert text is not None
        save_vision(tmp_path / kind, tower, text)
        (one,) = pieces(picture, vision).pieces
        found = transformers.AutoImageProcessor.from_pretrained(tmp_path / kind, use_fast=False)(
            picture, return_tensors="np"
        )
        theirs = found["pixel_values"][0].reshape(3, 4, 7, 4, 7).transpose(1, 3, 0, 2, 4).reshape(16, 147)
        np.testing.assert_allclose(one.values, theirs, atol=1e-5)


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_sizes_follow_the_mode(mode: str, tmp_path: Path) -> None:
    """4x joins patches once less: pictures are multiples of 28 pixels, and take four times the rows."""
    vision, tower, _ = load_vision(saved(minicpm_v("4_6", downsample_mode=mode), tmp_path / "peer"), language=False)
    plan = sizes(500, 300, vision)
    assert vision.slicing.multiple == (28 if mode == "4x" else 56)
    rows, columns = plan.grids[0]
    assert plan.tokens[0] == rows * columns // (4 if mode == "4x" else 16)
    with torch.no_grad():
        assert len(tower([piece(rows, columns)])[0]) == plan.tokens[0]


def test_what_does_not_belong_together_is_said(tmp_path: Path) -> None:
    row = small("minicpm-v-2")
    row = replace(row, merger=replace(row.merger, head_dim=128))
    folder = save_vision(tmp_path / "folder", VisionTower.build(row, WIDTH), language(row))
    config = json.loads((folder / "config.json").read_text())

    def changed(**keys: Any) -> None:
        data = json.loads(json.dumps(config))
        data["vision_config"] |= keys
        (folder / "config.json").write_text(json.dumps(data))

    changed(num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"16 tensors are missing \(encoder\.layers\.3"):
        load_vision(folder)
    changed(intermediate_size=40)
    with pytest.raises(ValueError, match=r"encoder\.layers\.\d\.mlp\.fc1\.\w+ has shape"):
        load_vision(folder)
    changed(num_hidden_layers=2)  # a file may have more layers than are computed
    assert load_vision(folder, language=False)[0].encoder.layers == 2
    changed(num_hidden_layers=True)
    with pytest.raises(ValueError, match="num_hidden_layers is True"):
        load_vision(folder)
    with pytest.raises(ValueError, match="exists already"):
        save_vision(folder, VisionTower.build(row, WIDTH), language(row))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    with pytest.raises(ValueError, match="no model that sees"):
        load_vision(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="a JSON object"):
        load_vision(folder)
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoder(tmp_path / "nowhere")


def test_rows_without_a_folder_have_names() -> None:
    assert set(FLAT) | {"minicpm-v-4.6", "minicpm-v-4.7"} == set(VISION), "each row is written and read in a test"
