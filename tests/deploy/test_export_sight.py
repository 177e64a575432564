"""A folder of a model that sees, exported by name or on first use: two files that belong together, or none."""

import numpy as np
import pytest
import torch

from gangpao.commands.model.loading import load_engine
from gangpao.deploy import pair
from gangpao.deploy.cached import cached_export
from gangpao.deploy.proof_numbers import Difference
from gangpao.engine.memory import EngineOptions
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
    model, beside = pair.export(folder, tmp_path / "m.gguf", "F32")
    assert (model.name, beside.name) == ("m.gguf", "mmproj-m.gguf")
    sight, piece = Sight.open(beside), tiny.piece(vision, (8, 8))
    with torch.no_grad():
        np.testing.assert_allclose(sight.encode(piece), tower([piece])[0].numpy(), atol=5e-5)
    with GGUF.open(model) as gguf:
        assert Engine.load(gguf).config.hidden_size == sight.text_size
    for kind in ("F32", "Q4_0"):
        with pytest.raises(ValueError, match="exists"):
            pair.export(folder, model, kind)


def test_the_encoder_has_a_type_of_its_own(tmp_path):
    folder, vision, tower = folder_of(tmp_path / "hf", "llava", "llama")
    _, beside = pair.export(folder, tmp_path / "m.gguf", "F16", sight="Q4_0", check=False)
    for path, kind in ((beside, "Q4_0"), (tmp_path / "m.gguf", "F16")):
        with GGUF.open(path) as gguf:
            assert kind in {tensor.type for tensor in gguf.tensors.values()}
    piece = tiny.piece(vision, (8, 8))
    expected = tower([piece])[0].detach().numpy()
    found = Sight.open(beside).encode(piece)
    assert 0.01 < np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.3


def test_there_is_no_encoder_without_its_language_model(tmp_path, monkeypatch):
    folder, *_ = folder_of(tmp_path / "hf", "llava", "llama")

    def fail(*_, **__):
        raise Difference("by order of the test")

    monkeypatch.setattr("gangpao.deploy.gguf.proof_numbers.prove", fail)
    with pytest.raises(Difference, match="by order"):
        pair.export(folder, tmp_path / "m.gguf", "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_folder_sees_when_it_is_the_model_of_a_command(tmp_path, monkeypatch, caplog):
    """`gangpao chat -m RUN/export`, which `gangpao tune` recommends, goes by the cache."""
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    folder, vision, tower = folder_of(tmp_path / "run" / "export", "llava", "llama")
    engine = load_engine(str(folder), options=EngineOptions(threads=1, context=128), mmproj=None)
    assert engine.name == "run"
    piece = tiny.piece(vision, (8, 8))
    expected = tower([piece])[0].detach().numpy()
    found = engine.seeing.sight.encode(piece)
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.03  # Q8_0
    assert "not read" not in caplog.text
    first = cached_export(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    second = cached_export(folder)
    assert sorted(path.name for path in second.parent.iterdir()) == ["mmproj-run.gguf", "run.gguf"]
    assert not first.parent.exists()
