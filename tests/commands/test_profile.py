"""`gangpao bench --profile`: every kernel once, what it does counted exactly, and nothing left behind."""

import json

import pytest

from gangpao import cli, kernels
from gangpao.commands.speed import profile
from gangpao.engine.generate import Engine
from tests.engine import tiny
from tests.engine.tiny import write_tiny

WEIGHTS = {
    "qkv": (tiny.HEADS + 2 * tiny.KV_HEADS) * tiny.HEAD_DIM * tiny.HIDDEN,
    "o": tiny.HEADS * tiny.HEAD_DIM * tiny.HIDDEN,
    "gate_up": 2 * tiny.FFN * tiny.HIDDEN,
    "down": tiny.FFN * tiny.HIDDEN,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine.load(write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf"), context=128, num_threads=1)


def test_what_kernels_do_is_counted_exactly(engine):
    before = {name: getattr(kernels, name) for name in kernels.__all__}
    found = profile.measure(engine, prompt_tokens=20, decode_tokens=6, repeat=1)
    assert {name: getattr(kernels, name) for name in kernels.__all__} == before
    assert kernels.counted_time() == (0, 0)
    assert engine.model._gate is kernels.swiglu
    for run in (found.decode, found.prefill):
        rows = {row.name: row for row in run.rows}
        assert {*WEIGHTS, "head", "rmsnorm", "rope_append", "attend", "swiglu"} <= set(rows)
        assert 0 < run.inside < run.wall
        assert 0 < run.outside < 1
        for name, weights in WEIGHTS.items():
            assert rows[name].macs == tiny.LAYERS * weights * run.tokens
    decode = {row.name: row for row in found.decode.rows}
    assert decode["qkv"].calls == tiny.LAYERS * found.decode.tokens
    assert decode["qkv"].bytes == 4 * tiny.LAYERS * WEIGHTS["qkv"] * found.decode.tokens  # F32
    positions = sum(range(21, 21 + found.decode.tokens))
    per_position = 2 * tiny.KV_HEADS * tiny.HEAD_DIM * 2 * tiny.LAYERS
    assert decode["attend"].bytes == positions * per_position
    assert decode["attend"].macs == 2 * tiny.HEADS * tiny.HEAD_DIM * tiny.LAYERS * positions
    assert found.bandwidth > 0
    assert found.peak > 0


def test_nothing_is_counted_unless_asked(engine):
    engine.model.forward([1, 2], engine.model.new_cache(64))
    assert kernels.counted_time() == (0, 0)
    kernels.count_time(True)
    engine.model.forward([1, 2], engine.model.new_cache(64))
    ns, calls = kernels.counted_time()
    kernels.count_time(False)
    assert ns > 0
    assert calls == 9 * tiny.LAYERS + 2


def test_the_command(engine, tmp_path, capsys):
    path = write_tiny(tmp_path / "tiny.gguf")
    options = ["--prompt-tokens", "12", "--decode-tokens", "4", "--repeat", "1", "--threads", "1"]
    assert cli.main(["bench", str(path), "--profile", *options]) == 0
    out = capsys.readouterr().out.strip().splitlines()
    shown = json.loads(out[-1])
    assert {"read_gb_per_s", "peak_gmac_per_s", "decode", "prefill"} == set(shown)
    rows = {row["name"]: row for row in shown["decode"]["kernels"]}
    assert rows["qkv"]["calls_per_token"] == tiny.LAYERS
    assert rows["gate_up"]["roofline"] > 0
    assert sum(row["share"] for row in rows.values()) + shown["decode"]["not_kernels"] == pytest.approx(1, abs=0.01)
    assert any(line.startswith("  not kernels") for line in out)
    assert cli.main(["bench", "--suite", "-m", str(path), "--profile"]) == 2
