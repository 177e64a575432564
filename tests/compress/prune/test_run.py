"""A step from a folder or a file to a folder, killed on the way, refused, and read by everybody."""

import json
import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gangpao.compress.prune import run, source
from gangpao.compress.prune.config import PruneConfig
from gangpao.compress.prune.masks import read_masks
from gangpao.deploy import gguf as writer
from gangpao.deploy.export import fold
from gangpao.engine.transformer import Transformer as Engine
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.count import parameters
from tests.compress.prune.small import logits, model, save
from tests.llama_oracle import LlamaOracle
from tests.train.conftest import configured, data_dir  # noqa: F401

IDS = np.random.default_rng(2).integers(0, 270, (1, 40)).astype(np.int64)
CALIBRATION = {"windows": 4, "measured": 2, "length": 32}


def config(**given):
    return PruneConfig.model_validate({"calibration": CALIBRATION, "multiple": 8, "threads": 1} | given)


@pytest.fixture
def folder(tmp_path, random_windows):
    return save(model("minicpm"), tmp_path / "from")


def bits(path):
    return {name: t.numpy().tobytes() for name, t in weights.tensors(path)}


def test_a_step_makes_a_smaller_folder_and_says_what_it_did(folder, tmp_path):
    result = run.run_step(config(layers=2, ffn=0.5, heads=2, width=48), folder, folder, tmp_path / "out")
    assert result.path == tmp_path / "out" / "model"
    small = weights.load(result.path)
    c, facts = small.config, result.facts
    assert (c.num_hidden_layers, c.intermediate_size, c.num_attention_heads, c.hidden_size) == (2, 48, 2, 48)
    count = sum(p.numel() for p in small.parameters())
    assert count == facts["after"]["parameters"] == parameters(c).total == facts["after"]["bytes"] / 4
    assert facts["before"]["parameters"] > count
    assert facts["kl"] > 0
    assert facts["loss"]["before"] > 0
    assert facts["flops"]["total"] == pytest.approx(sum(v for k, v in facts["flops"].items() if k != "total"))
    assert min(facts["flops"].values()) >= 0
    assert [len(k) for k in facts["kept"]["ffn"]] == [48, 48]
    assert json.loads(json.dumps(facts)) == facts
    names = {p.name for p in result.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    again = run.run_step(config(layers=2, ffn=0.5, heads=2, width=48), folder, folder, tmp_path / "out")
    assert again.facts == facts


@pytest.mark.parametrize("stop", ["measure", "reconstructed", "save"])
def test_a_step_that_was_killed_goes_on_to_the_same_bits(stop, folder, tmp_path, monkeypatch):
    told = config(parameters=0.7, candidates=2, least=0.6)
    whole = run.run_step(told, folder, folder, tmp_path / "whole")
    where, name = {
        "measure": (run.Judge, "__call__"), "reconstructed": (run, "reconstructed"),
        "save": (run.weights, "save"),
    }[stop]  # fmt: skip
    original, calls = getattr(where, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == (4 if stop == "measure" else 1):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as m:
        m.setattr(where, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run.run_step(told, folder, folder, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    result = run.run_step(told, folder, folder, tmp_path / "killed")
    assert result.facts == whole.facts
    assert bits(result.path) == bits(whole.path)


def test_one_target_takes_the_best_that_was_measured(folder, tmp_path):
    facts = run.run_step(config(parameters=0.7, candidates=4), folder, folder, tmp_path / "out").facts
    assert facts["after"]["parameters"] <= 0.7 * facts["before"]["parameters"]
    measured = [row["measured"] for row in facts["candidates"]]
    assert measured == sorted(measured)
    assert len(measured) == 4
    best = facts["candidates"][0]["shape"]
    assert all(facts["after"][key] == value for key, value in best.items())
    assert facts["kl"] == pytest.approx(measured[0], rel=1e-6)


def test_another_step_in_the_same_folder_is_refused(folder, tmp_path):
    run.run_step(config(ffn=0.5), folder, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="another ffn"):
        run.run_step(config(ffn=0.75), folder, folder, tmp_path / "out")
    other = save(model("minicpm", seed=5), tmp_path / "other")
    with pytest.raises(ValueError, match="another model or calibration text"):
        run.run_step(config(ffn=0.5), other, other, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heads": 3}, "possible are 1, 2, 4"),
        ({"ffn": 50}, "48 and 56"),
        ({"layers": 4}, "1 to 3"),
        ({"parameters": 0.05}, "smallest shape"),
    ],
)
def test_impossible_targets_are_refused_with_possible_ones(given, words, folder, tmp_path):
    with pytest.raises(ValueError, match=words):
        run.run_step(config(**given), folder, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to do"),
        ({"pattern": "4:2"}, "n weights that stay"),
        ({"ffn": 0.5, "layer_score": "influence"}, "greedy"),
        ({"pattern": "2:4", "gates": {"data": "x"}}, "gates learn"),
        ({"ffn": 0.5, "gates": {"data": "x", "batch_tokens": 100}}, "whole rows"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(given, words):
    with pytest.raises(ValidationError, match=words):
        PruneConfig.model_validate(given)


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("kind", ["minicpm", "qwen2", "qwen3"])
def test_lab_engine_and_llama_cpp_run_what_comes_out(kind, tmp_path, random_windows):
    start = save(model(kind), tmp_path / "from")
    told = config(layers=2, ffn=0.5, heads=2, width=48)
    path = run.run_step(told, start, start, tmp_path / "out").path
    small = weights.load(path)
    expected = logits(small, IDS)[0, -1].log_softmax(-1).numpy()
    assert expected.std() > 0.15, "the model says nothing"
    file = writer.export(path, tmp_path / "m.gguf", "F32")
    with GGUF.open(file) as gguf:
        engine = Engine.load(gguf)
        found = engine.forward(IDS[0].tolist(), engine.new_cache(64)).astype(np.float64)
        del engine
    assert distance(found - np.logaddexp.reduce(found), expected) < 1e-3
    vocabulary = small.config.vocab_size
    with LlamaOracle(file, n_ctx=64, kv="F32") as oracle:
        assert distance(oracle.vector(IDS[0].tolist(), vocabulary), expected) < 1e-3


@pytest.mark.parametrize("kind", ["minicpm", "qwen2"])
def test_transformers_runs_what_comes_out(kind, tmp_path, random_windows):
    """A MiniCPM with its scales folded into the weights, since no class of the library has them."""
    transformers = pytest.importorskip("transformers")
    start = save(model(kind), tmp_path / "from")
    path = run.run_step(config(layers=2, ffn=0.5, heads=2, width=48), start, start, tmp_path / "out").path
    read = fold(path, tmp_path / "folded") if kind == "minicpm" else path
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(read), dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(torch.from_numpy(IDS)).logits
    torch.testing.assert_close(found, logits(weights.load(path), IDS), rtol=1e-4, atol=1e-4)


def test_a_file_becomes_a_folder(folder, tmp_path):
    file = writer.export(folder, tmp_path / "m.gguf", "F32")
    told = config(ffn=0.5)
    from_file = run.run_step(told, file, file, tmp_path / "a").path
    from_folder = run.run_step(told, folder, folder, tmp_path / "b").path
    one, two = weights.load(from_file), weights.load(from_folder)
    torch.testing.assert_close(logits(one, IDS), logits(two, IDS), rtol=1e-4, atol=1e-4)
    again = source.load(from_file).tokenizer
    assert again.encode("hello 你好") == source.load(folder).tokenizer.encode("hello 你好")


def test_a_pattern_lies_beside_what_comes_out(folder, tmp_path):
    result = run.run_step(config(pattern="2:4", ffn=0.5), folder, folder, tmp_path / "out")
    masks, named = read_masks(result.path), dict(weights.load(result.path).named_parameters())
    assert len(masks) == 21
    assert all(not named[name][~mask].any() for name, mask in masks.items())
    assert result.facts["pattern"] == {"pattern": "2:4", "by": "sparsegpt", "share": 0.5}


def test_gates_learn_what_stays(data_dir, tmp_path, random_windows):  # noqa: F811
    """On the data of the lab's tests: trained, cut, and after a kill the same bits."""
    from gangpao.data.build import open_built
    from gangpao.text.hf_folder import tokenizer_files
    from gangpao.text.tokenizer import Tokenizer
    from tests.train.conftest import CONFIGS, SMALL

    built = open_built(data_dir)
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    files = tokenizer_files(built.tokenizer_dir)
    start_model = model("minicpm", vocab_size=tokenizer.vocab_size)
    start = weights.save(tmp_path / "from", start_model.config, weights.state(start_model), extra=files)
    data = tmp_path / "data.toml"
    text = (CONFIGS / "data-tiny.toml").read_text()
    for change in SMALL:
        key, _, value = change.rpartition("=")
        text = _with(text, key, value)
    data.write_text(text)
    gates = {
        "data": str(data), "data_dir": str(data_dir), "steps": 12, "seq_len": 32, "batch_tokens": 128, "gate_lr": 1.0,
        "micro_batch_size": 4, "save_every_steps": 6,
    }  # fmt: skip
    told = config(ffn=0.5, heads=2, kv_heads=2, gates=gates)
    whole = run.run_step(told, start, start, tmp_path / "whole")
    assert whole.facts["gates"]["open"]["ffn"] < 0.8
    small = weights.load(whole.path)
    assert (small.config.intermediate_size, small.config.num_attention_heads) == (48, 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "model")
    (tmp_path / "killed" / "work" / "facts.json").unlink()
    shutil.rmtree(tmp_path / "killed" / "work" / "gates" / "checkpoints" / "step-00000012")
    again = run.run_step(told, start, start, tmp_path / "killed")
    assert bits(again.path) == bits(whole.path)
    assert again.facts == whole.facts


def _with(text, key, value):
    """A TOML text with one number changed."""
    table, _, leaf = key.rpartition(".")
    lines, inside = text.splitlines(), False
    for i, line in enumerate(lines):
        if line.startswith("["):
            inside = line.strip() == f"[{table}]"
        elif inside and line.split("=")[0].strip() == leaf:
            lines[i] = f"{leaf} = {value}"
    return "\n".join(lines) + "\n"
