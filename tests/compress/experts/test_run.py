"""The step over a whole model: the dense one with all experts, a file that the engine runs, and going on where it was stopped."""

import io

import numpy as np
import pytest
import torch

from gangpao.atomic import read_json
from gangpao.compress.experts import run
from gangpao.compress.experts.config import ExpertsConfig
from gangpao.deploy import gguf as writer
from gangpao.engine.transformer import Transformer as Engine
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.train.upcycle import upcycle, upcycled
from tests.model.test_transformer import build
from tests.model.tiny import tiny
from tests.text.hf_folder import byte_level, save

_WINDOWS = run.windows
IDS = np.random.default_rng(1).integers(3, 300, (8, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = build("minicpm", num_hidden_layers=2, intermediate_size=128).float()
    path = weights.save(tmp_path_factory.mktemp("dense") / "m", model.config, weights.state(model))
    return save(path, byte_level())


@pytest.fixture(autouse=True)
def _own_text(monkeypatch):
    monkeypatch.setattr(run, "windows", lambda base, config: IDS)


def step(folder, out, **fields):
    config = ExpertsConfig(**({"experts": 4, "router_steps": 30, "threads": 1} | fields))
    return run.run_step(config, folder, folder, out, stream=io.StringIO())


def logits(path, ids=IDS[0]):
    model = weights.load(path)
    with torch.no_grad():
        return model.logits(model(torch.from_numpy(ids)[None]).hidden)[0].numpy()


def test_all_experts_are_the_dense_model(folder, tmp_path):
    result = step(folder, tmp_path / "o", active=4)
    wanted, found = logits(folder), logits(result.path)
    assert np.abs(wanted - found).max() < 1e-5 * np.abs(wanted).max()
    assert result.facts["error"] == 0
    assert result.facts["active_share"] == 1


@pytest.mark.parametrize("fields", [{"active": 2}, {"active": 1, "shared": 0.5}])
def test_the_engine_computes_what_the_lab_computes(folder, tmp_path, fields):
    result = step(folder, tmp_path / "o", **fields)
    assert weights.load(result.path).config.moe.num_experts_per_tok == fields["active"]
    path = writer.export(result.path, tmp_path / "m.gguf", "F32")  # proved by reading it back
    with GGUF.open(path) as gguf:
        engine = Engine.load(gguf)
        found = engine.forward(IDS[0], engine.new_cache(64), all_logits=True)
        shares = engine.bytes_per_token / engine.nbytes
        del engine
    wanted = logits(result.path)
    close = np.abs(found - wanted).max(axis=1) < 3e-3 * np.abs(wanted).max()
    assert close.mean() > 0.9  # rounding may choose another expert
    assert shares < 1
    facts = result.facts
    assert 0 < facts["error"] < 1
    assert facts["active_share"] == facts["active"] * facts["expert_channels"] / 128
    assert facts["active_parameters"] < facts["parameters"]
    assert len(facts["layers"]) == 2


def test_fewer_experts_are_farther_from_the_dense_model(folder, tmp_path):
    wanted = logits(folder)
    far = [np.square(wanted - logits(step(folder, tmp_path / str(k), active=k).path)).mean() for k in (1, 2, 3)]
    assert far[0] > far[1] > far[2] > 0


def test_a_stopped_step_goes_on_with_the_same_bits(folder, tmp_path, monkeypatch):
    whole = step(folder, tmp_path / "whole")
    real, calls = run.cut, []

    def stops(*a):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(run, "cut", stops)
    with pytest.raises(KeyboardInterrupt):
        step(folder, tmp_path / "parts")
    assert not (tmp_path / "parts/model").exists()
    monkeypatch.setattr(run, "cut", lambda *a: calls.append(1) or real(*a))
    parts = step(folder, tmp_path / "parts")
    assert len(calls) == 3
    assert parts.facts == whole.facts
    assert (parts.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    again = step(folder, tmp_path / "parts")
    assert (again.facts, len(calls)) == (whole.facts, 3)
    with pytest.raises(ValueError, match=r"holds another step \(active differ\)"):
        step(folder, tmp_path / "parts", active=3)
    assert read_json(tmp_path / "parts/work/told.json")["active"] == 2


def test_a_gguf_file_is_a_source_and_the_text_that_ships_is_enough(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "windows", _WINDOWS)
    text = {"windows": 8, "length": 32}
    path = writer.export(folder, tmp_path / "m.gguf", "F32", check=False)
    a, b = (step(one, tmp_path / name, calibration=text) for one, name in ((folder, "a"), (path, "b")))
    assert a.facts["tokens"] == b.facts["tokens"] == 256
    assert np.array_equal(logits(a.path), logits(b.path))
    assert (b.path / "tokenizer.json").is_file()


def test_what_cannot_be_cut_is_said(folder, tmp_path):
    config = ExpertsConfig(experts=4)
    with pytest.raises(ValueError, match="a norm on q and k together with experts"):
        run.experts_config(tiny("qwen3"), config)
    with pytest.raises(ValueError, match="latent attention"):
        run.experts_config(tiny("mla"), config)
    with pytest.raises(ValueError, match="96 channels are not 5 experts"):
        run.experts_config(tiny("llama"), ExpertsConfig(experts=5))
    dense = weights.load(folder)
    shape = upcycled(dense.config, 4)
    path = weights.save(tmp_path / "moe", shape, upcycle(shape, weights.state(dense)))
    save(path, byte_level())
    with pytest.raises(ValueError, match="has experts already"):
        step(path, tmp_path / "o")
    assert run.experts_config(tiny("qwen2"), config).moe.num_experts == 4
