"""An export that is found again, written again when the folder changed, and never there by half."""

import os
import sys

import pytest

from gangpao.atomic import Busy, locked
from gangpao.deploy import gguf
from gangpao.deploy.cached import cached_export, exports_dir
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from tests.deploy.test_gguf import hf_tokenizer
from tests.model.test_transformer import build


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    model = build("llama").float()
    path = weights.save(tmp_path / "run" / "export", model.config, weights.state(model))
    hf_tokenizer(path)
    return path


def exports():
    return sorted(exports_dir().rglob("*.gguf"))


def test_a_folder_is_exported_once(folder, monkeypatch):
    seen = []
    first = cached_export(folder, lambda done, total: seen.append((done, total)))
    assert seen
    assert first.name == "run.gguf"
    with GGUF.open(first) as file:
        assert file.tensors["blk.0.attn_q.weight"].type == "Q8_0"
    monkeypatch.setitem(sys.modules, "gangpao.deploy.pair", None)  # as where there is no torch
    monkeypatch.delattr("gangpao.deploy.pair")
    assert cached_export(str(folder)) == first
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with pytest.raises(ImportError):
        cached_export(folder)


def test_a_changed_folder_is_exported_again_and_the_old_file_goes(folder):
    first = cached_export(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    second = cached_export(folder)
    assert second != first
    assert exports() == [second]
    assert cached_export(folder, kind="F16") != second


def test_what_cannot_be_exported_leaves_nothing(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a checkpoint"):
        cached_export(tmp_path)

    def broken(*_, **__):
        raise ValueError("no GGUF form")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "export", broken)
        with pytest.raises(ValueError, match="no GGUF form"):
            cached_export(folder)
    assert exports() == []
    place = cached_export(folder).parent.parent
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with locked(place), pytest.raises(Busy, match="exporting this checkpoint"):
        cached_export(folder)
