"""`gangpao export` of a folder of a model that sees: two files that belong together, or none."""

import numpy as np
import pytest
import torch

from gangpao.deploy.export import both
from gangpao.deploy.proof_numbers import Difference
from gangpao.engine.transformer import Transformer as Engine
from gangpao.engine.vision.sight import Sight
from gangpao.formats.gguf import GGUF
from gangpao.model.vision.load import save_vision
from tests.deploy.test_gguf import hf_tokenizer
from tests.engine import vision as tiny
from tests.model.test_transformer import build


def folder_of(path, name, language):
    """A folder with random weights of a row's family."""
    model = build(language).float()
    vision = tiny.small(name)
    tower = tiny.tower(vision, width=model.config.hidden_size)
    folder = save_vision(path, tower, model)
    hf_tokenizer(folder)
    return folder, vision, tower


@pytest.mark.parametrize(("name", "language"), [("llava", "llama"), ("minicpm-v-2.6", "qwen2")])
def test_a_folder_that_sees_becomes_two_files(tmp_path, name, language):
    folder, vision, tower = folder_of(tmp_path / "hf", name, language)
    model, beside = both(folder, tmp_path / "m.gguf", "F32")
    assert (model.name, beside.name) == ("m.gguf", "mmproj-m.gguf")
    sight, piece = Sight.open(beside), tiny.piece(vision, (8, 8))
    with torch.no_grad():
        np.testing.assert_allclose(sight.encode(piece), tower([piece])[0].numpy(), atol=5e-5)
    with GGUF.open(model) as gguf:
        assert Engine.load(gguf).config.hidden_size == sight.text_size
    for kind in ("F32", "Q4_0"):
        with pytest.raises(ValueError, match="exists"):
            both(folder, model, kind)


def test_there_is_no_encoder_without_its_language_model(tmp_path, monkeypatch):
    folder, *_ = folder_of(tmp_path / "hf", "llava", "llama")

    def fail(*_, **__):
        raise Difference("by order of the test")

    monkeypatch.setattr("gangpao.deploy.gguf.proof_numbers.prove", fail)
    with pytest.raises(Difference, match="by order"):
        both(folder, tmp_path / "m.gguf", "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
