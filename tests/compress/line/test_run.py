"""A line, whole: steps follow one another, a killed one goes on, another configuration is refused, every model gets its row."""

import json
import shutil

import pytest

from gangpao.compress.line import run as line
from gangpao.compress.line.config import CompressConfig
from gangpao.compress.line.file import FileConfig, make_file, run_step
from gangpao.compress.line.report import measured, text
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import read_imatrix
from gangpao.progress import Silent
from tests.compress.models import folder_of

CALIBRATION = {"windows": 4, "measured": 2, "length": 32}
STEPS = [
    {"kind": "prune", "layers": 2, "calibration": CALIBRATION, "threads": 1},
    {"kind": "quantize", "to": "Q8_0", "data": [], "threads": 1},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("line") / "model", num_hidden_layers=3)


def config_of(steps=STEPS, **more):
    return CompressConfig.model_validate(
        {"model": "m", "step": steps, "report": {"answers": False, "speed": False, "windows": 1}, **more}
    )


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("line") / "run"
    return out, line.run_compression(config_of(), model, out)


def test_steps_follow_one_another(done):
    out, (prune, quantize) = done
    assert prune.path == out / "01-prune" / "model"
    assert quantize.path == out / "02-quantize" / "model.gguf"
    with GGUF.open(quantize.path) as found:
        assert found.get_int(f"{found.metadata['general.architecture']}.block_count") == 2
        assert found.info("blk.0.attn_q.weight").type == "Q8_0"
    facts = json.loads((out / "02-quantize" / "facts.json").read_text())
    assert facts["facts"]["types"]["Q8_0"] == quantize.facts["types"]["Q8_0"] > 0


def test_what_is_done_is_not_done_again_and_what_is_missing_is(done, model, tmp_path):
    out, before = done
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    raw = (copy / "02-quantize" / "model.gguf").read_bytes()
    shutil.rmtree(copy / "02-quantize")
    begun = (copy / "01-prune" / "model" / "model.safetensors").stat().st_mtime_ns
    again = line.run_compression(config_of(), model, copy, resume=True)
    assert (copy / "01-prune" / "model" / "model.safetensors").stat().st_mtime_ns == begun
    assert again[1].path.read_bytes() == raw
    assert [one.facts for one in again[:1]] == [one.facts for one in before[:1]]


def test_a_changed_step_is_refused_and_nothing_is_lost(done, model):
    out, _ = done
    changed = [STEPS[0], STEPS[1] | {"to": "Q4_0"}]
    with pytest.raises(ValueError, match=r"02-quantize was made with other settings.*rm -r"):
        line.run_compression(config_of(changed), model, out)
    with pytest.raises(ValueError, match="02-quantize: no step of this compression"):
        line.run_compression(config_of(STEPS[:1]), model, out)
    assert (out / "02-quantize" / "model.gguf").is_file()


def test_every_model_gets_a_row(done, model):
    out, steps = done
    report = measured(config_of(), model, steps, out, measure_speed=None, progress=(Silent(), Silent()))
    before, pruned, quantized = report["rows"]
    assert before["kl_divergence"] is None
    assert pruned["kl_divergence"] > 0
    assert quantized["parameters"] == pruned["parameters"] < before["parameters"]
    assert quantized["bytes"] < pruned["bytes"] < before["bytes"]
    assert json.loads((out / "report.json").read_text())["rows"][2]["told"]["to"] == "Q8_0"
    assert "1 prune" in text(report)
    assert "2 quantize" in (out / "report.html").read_text()


def test_rows_that_do_not_fit_fall_back_before_they_are_rounded(model, tmp_path):
    config = FileConfig.model_validate({"to": "Q2_K", "tokens": 6 * 512, "threads": 1, "rounding": {"kind": "gptq"}})
    done, said = make_file(config, model, tmp_path / "out.gguf", guide=None, folder=tmp_path)
    assert {row.type for row in done.tensors if row.wanted == "Q2_K"} <= {"Q4_0"}
    assert said["rounding"]["tensors"] > 0


def test_a_budget_and_rounding_make_one_file(model, tmp_path):
    notes = []
    config = FileConfig.model_validate({"bits": 7.0, "tokens": 6 * 512, "threads": 1, "rounding": {"kind": "gptq"}})
    done, said = make_file(
        config, model, tmp_path / "out.gguf", guide=None, folder=tmp_path / "work", on_note=notes.append
    )
    assert (tmp_path / "out.gguf").stat().st_size == done.nbytes
    assert said["budget"]["bits"] <= 7.0
    assert said["rounding"]["tensors"] > 0
    assert any("bits a weight" in note for note in notes)


@pytest.mark.parametrize("more", [{"to": "Q4_0", "pure": True}, {"bits": 7.0, "rounding": {"kind": "gptq"}}])
def test_a_model_that_reads_little_is_looked_at_in_windows_of_what_it_reads(tmp_path, more):
    short = folder_of(tmp_path / "short", num_hidden_layers=1, max_position_embeddings=32)
    config = FileConfig.model_validate({"tokens": 192, "threads": 1, **more})
    found = run_step(config, short, short, tmp_path / "out")
    with GGUF.open(found.path) as file:
        assert file.get_int(f"{file.metadata['general.architecture']}.context_length") == 32
    matrix = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert (matrix.chunks, matrix.chunk_size) == (6, 32)
