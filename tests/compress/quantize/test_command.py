"""`gangpao quantize` and `gangpao imatrix` as a person types them, and the step of `gangpao compress`."""

import json

import numpy as np
import pytest

from gangpao.cli import main
from gangpao.commands.compress import quantize as command
from gangpao.compress.importance import collect as collecting
from gangpao.compress.line.file import FileConfig, run_step
from gangpao.formats.blocks import quantize
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance, read_imatrix, write_imatrix
from tests.formats.gguf_maker import random_model

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_layers": 1}


@pytest.fixture
def model(tmp_path):
    return random_model(tmp_path / "float.gguf", "llama")  # rows of 64: no K-quants, which take long in numpy


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_of_a_mixture_and_its_table(tmp_path, capsys) -> None:
    model, out = random_model(tmp_path / "wide.gguf", "llama", **WIDE), tmp_path / "small.gguf"
    code, text, err = run(capsys, "quantize", model, out, "--to", "q4_k_m", "--threads", 1)
    assert code == 0, err
    with GGUF.open(out) as found:
        assert found.tensors["blk.0.attn_q.weight"].type == "Q4_K"
        assert found.tensors["blk.0.ffn_down.weight"].type == "Q6_K"
        assert found.tensors["token_embd.weight"].type == "Q6_K"
        assert found.metadata["general.file_type"] == 15
        assert found.metadata["general.quantization_version"] == 2
    assert [line.split()[0] for line in text.splitlines()][:5] == ["type", "Q6_K", "Q4_K", "F32", "all"]
    assert "bits a weight" in text


def test_json_says_what_fell_back_and_a_second_rounding_is_warned_of(model, tmp_path, capsys) -> None:
    code, text, _ = run(capsys, "quantize", model, tmp_path / "a.gguf", "--to", "Q4_K_S", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["fell_back"][0]["wanted"] == "Q4_K"
    assert facts["types"].keys() == {"F32", "Q5_0", "Q5_1", "Q8_0"}
    assert facts["file_bytes"] == (tmp_path / "a.gguf").stat().st_size
    code, _, err = run(capsys, "quantize", tmp_path / "a.gguf", tmp_path / "b.gguf", "--to", "Q4_0")
    assert code == 0
    assert "quantized again" in err


def test_an_importance_matrix_is_made_read_and_written_about(model, tmp_path, capsys) -> None:
    made = tmp_path / "i.gguf"
    code, text, err = run(capsys, "imatrix", model, made, "--tokens", 64, "--window", 32, "--threads", 1, "--show")
    assert code == 0, err
    assert "64 tokens in 2 windows: zh 32, en 32" in err
    assert "columns that stand out" in text
    found = read_imatrix(made)
    assert (len(found.sums), found.chunks, found.chunk_size) == (14, 2, 32)
    code, text, _ = run(capsys, "imatrix", made, "--show")
    assert code == 0
    assert "columns that stand out" in text
    out, plain = tmp_path / "guided.gguf", tmp_path / "plain.gguf"
    assert run(capsys, "quantize", model, out, "--to", "Q4_0", "--imatrix", made)[0] == 0
    assert run(capsys, "quantize", model, plain, "--to", "Q4_0")[0] == 0
    with GGUF.open(out) as guided, GGUF.open(plain) as unguided:
        assert guided.metadata["quantize.imatrix.file"] == "i.gguf"
        assert guided.metadata["quantize.imatrix.entries_count"] == 14
        assert guided.metadata["quantize.imatrix.chunks_count"] == 2
        assert not np.array_equal(guided.raw("blk.0.attn_q.weight"), unguided.raw("blk.0.attn_q.weight"))


def test_experts_are_rounded_each_with_its_own_importance(tmp_path, capsys) -> None:
    model, made, out = tmp_path / "m.gguf", tmp_path / "i.gguf", tmp_path / "o.gguf"
    random_model(model, "llama", experts=(4, 2))
    code, _, err = run(capsys, "imatrix", model, made, "--tokens", 256, "--window", 64, "--threads", 1)
    assert code == 0, err
    code, _, err = run(capsys, "quantize", model, out, "--to", "Q4_0", "--imatrix", made)
    assert (code, "no importance" in err) == (0, False)
    name, importance = "blk.1.ffn_down_exps.weight", read_imatrix(made)
    assert importance.counts[name].sum() == 2 * 256
    with GGUF.open(model) as float_, GGUF.open(out) as small:
        values, rows = float_.array(name).reshape(4, 64, 96), small.raw(name).reshape(4, 64, -1)
        for expert, columns in enumerate(importance.of(name)):
            np.testing.assert_array_equal(rows[expert], quantize(values[expert], "Q4_0", columns))


def test_the_old_form_is_written_and_guides_alike(model, tmp_path, capsys) -> None:
    options = ("--tokens", 32, "--window", 32, "--threads", 1)
    for form in ("gguf", "dat"):
        assert run(capsys, "imatrix", model, tmp_path / form, "--form", form, *options)[0] == 0
        done = run(capsys, "quantize", model, tmp_path / f"{form}.gguf", "--to", "Q4_0", "--imatrix", tmp_path / form)
        assert done[0] == 0
    with GGUF.open(tmp_path / "gguf.gguf") as a, GGUF.open(tmp_path / "dat.gguf") as b:
        same = [np.mean(a.raw(name) == b.raw(name)) for name in a.tensors]
    assert min(same) > 0.99  # means were rounded once more


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--to", "Q4_K_XL"), "is no type we write"), (("--to", "Q2_K_S"), "needs an importance matrix"),
        (("--imatrix", "other", "--data", "own"), "leave out the other"), (("--imatrix", "other"), "made with another model"),
        (("--data", "nowhere.txt"), "nowhere.txt"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_no_file(model, tmp_path, capsys, monkeypatch, words, reason) -> None:
    monkeypatch.chdir(tmp_path)
    write_imatrix("other", Importance({"blk.9.x": np.ones(4, np.float32)}, {"blk.9.x": np.array([1])}))
    code, _, err = run(capsys, "quantize", model, "out.gguf", *words)
    assert code == 2
    assert reason in err
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("experts", "words", "reason"),
    [
        (None, ("--bits", "6", "--to", "Q4_0"), "so to would say nothing"),
        (None, ("--bits", "6", "--pure"), "so pure would say nothing"),
        (None, ("--bits", "1"), "no file of this model has 1 bits a weight: the least is"),
        (None, ("--bytes", "10KB"), "no file of this model has 10,000 bytes: the least is"),
        (None, ("--bytes", "10XB"), "is no amount of bytes"), ((4, 2), ("--bits", "6"), "a model of experts, for which"),
        ((4, 2), ("--rounding", "gptq"), "a model of experts, for which"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_collected(
    experts, words, reason, tmp_path, capsys, monkeypatch
) -> None:
    model = random_model(tmp_path / "m.gguf", "llama", experts=experts)
    monkeypatch.setattr(command, "collected", lambda *_, **__: pytest.fail("an importance matrix was begun"))
    code, _, err = run(capsys, "quantize", model, tmp_path / "out.gguf", *words)
    assert code == 2
    assert reason in err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_stopped_command_keeps_its_importance_matrix(model, tmp_path, capsys, monkeypatch) -> None:
    words = ("--to", "Q4_0", "--data", "own", "--tokens", 512, "--threads", 1)
    assert run(capsys, "quantize", model, tmp_path / "whole.gguf", *words)[0] == 0
    out, work = tmp_path / "out.gguf", tmp_path / "out.gguf.work"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command, "make_file", stop)
        code, _, err = run(capsys, "quantize", model, out, *words)
    assert (code, out.exists()) == (130, False)
    assert f"{work} keeps what is done" in err
    monkeypatch.setattr(collecting, "Segment", lambda *_: pytest.fail("it was collected again"))
    code, _, err = run(capsys, "quantize", model, out, *words)
    assert code == 0, err
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not work.exists()


@pytest.mark.parametrize("words", [("quantize", "--to", "Q8_0"), ("imatrix", "--tokens", 64, "--window", 32)])
def test_a_file_that_is_there_stays(words, model, capsys) -> None:
    before, (verb, *options) = model.read_bytes(), words
    code, _, err = run(capsys, verb, model, model, *options)
    assert code == 2
    assert "exists already" in err
    assert model.read_bytes() == before


def test_a_step_goes_on_and_gives_the_same_file(model, tmp_path) -> None:
    assert FileConfig(to="q4_k").to == "Q4_K_M"
    config = FileConfig(to="Q4_0", tokens=512, threads=1)
    first = run_step(config, model, model, tmp_path / "step")
    assert first.path == tmp_path / "step" / "model.gguf"
    assert first.facts["types"]["Q4_0"] > 0
    begun = (tmp_path / "step" / "imatrix.gguf").stat().st_mtime_ns
    raw = first.path.read_bytes()
    first.path.unlink()
    assert run_step(config, model, model, tmp_path / "step").path.read_bytes() == raw
    assert (tmp_path / "step" / "imatrix.gguf").stat().st_mtime_ns == begun
    plain = run_step(FileConfig(data=(), threads=1), model, model, tmp_path / "plain")
    with GGUF.open(plain.path) as found:
        assert "quantize.imatrix.file" not in found.metadata
