"""pull, list, rm, bench and doctor through the command line, over a store and a catalog of the test's own."""

import hashlib
import json
import re

import pytest

from gangpao import cli, kernels
from gangpao.commands.doctor import cpu_features
from gangpao.commands.terminal import screen
from gangpao.units import table
from tests.engine.tiny import write_tiny


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store, and a catalog in which `tiny` is a file on this machine."""
    file = write_tiny(tmp_path / "source.gguf")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    config = tmp_path / "config" / "gangpao"
    config.mkdir(parents=True)
    (config / "catalog.toml").write_text(
        f'defaults = ["tiny"]\n[models.tiny]\ntitle = "Tiny"\nfamily = "llama"\nfile = "tiny.gguf"\nengine = true\n'
        f'licence = "none"\nbytes = {file.stat().st_size}\nsha256 = "{digest}"\n'
        f'sources = [{{ kind = "file", path = "{file}" }}]\n'
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GANGPAO_SOURCES", raising=False)
    return tmp_path / "home" / "models"


def test_pull_list_rm(store, capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ d  tiny +368 kB +untested +none +Tiny$", out, re.MULTILINE)
    assert cli.main(["pull", "tiny"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(store / "tiny" / "tiny.gguf")
    assert cli.main(["list", "--json"]) == 0
    row = next(r for r in json.loads(capsys.readouterr().out) if r["name"] == "tiny")
    assert (row["path"], row["licence"]) == (path, "none")
    assert row["bytes"] > 300_000
    assert cli.main(["rm", "tiny"]) == 0
    assert "removed tiny" in capsys.readouterr().out
    assert cli.main(["rm", "tiny"]) == 2
    assert "error: tiny: not on this machine" in capsys.readouterr().err


def test_run_takes_and_pulls_the_default_and_says_so(store, capsys):
    assert cli.main(["run", "--yes", "--json", "--max-tokens", "4", "--seed", "1", "hello"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == "tiny"
    assert "no model here yet. On offer: tiny, the best default model" in err
    assert cli.main(["run", "--json", "--max-tokens", "4", "--seed", "1", "hello"]) == 0
    again, err = capsys.readouterr()
    assert json.loads(again)["text"] == json.loads(out)["text"]
    assert err.startswith("model: tiny, the best of the installed models")


def test_same_seed_same_text_through_threads_and_kv(store, capsys):
    def text(*args):
        assert cli.main(["run", "-m", "tiny", "--json", "--max-tokens", "30", "--seed", "5", "hello", *args]) == 0
        return json.loads(capsys.readouterr().out)["text"]

    assert text("--threads", "1") == text("--threads", "2") == text()
    assert len(text("--kv", "int8")) > 0
    assert text("--temperature", "0", "--seed", "1") == text("--temperature", "0", "--seed", "2")


def test_errors_of_the_model_file(store, tmp_path, capsys):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    assert cli.main(["run", "-m", str(tmp_path / "bad.gguf"), "hi"]) == 2
    assert "bad.gguf" in capsys.readouterr().err
    assert cli.main(["run", "-m", "tinny", "hi"]) == 2
    assert "Did you mean tiny" in capsys.readouterr().err
    assert cli.main(["run", "-m", "tiny", "x" * 600]) == 2
    assert "the question has" in capsys.readouterr().err


def test_bench(store, capsys):
    assert cli.main(["bench", "tiny", "--prompt-tokens", "40", "--decode-tokens", "5", "--repeat", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert set(result) == {
        "prefill_tps", "decode_tps", "gb_per_s", "mbu", "rss_mb", "load_s", "others_cpus", "steal", "load_1m",
        "picture_s", "rows", "drafts",
    }  # fmt: skip
    assert list(result["rows"]) == ["2", "4", "8", "16"]
    assert all(result[name] > 0 for name in ("prefill_tps", "decode_tps", "gb_per_s", "mbu", "rss_mb", "load_s"))
    assert [line.split()[0] for line in lines[:-1]] == [
        "model", "kernels", "prefill", "decode", "weights", "rows", "memory", "load", "machine",
    ]  # fmt: skip


def test_doctor(store, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "read_bandwidth", lambda: 20.0)
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in kernels.available_isas()
    assert facts["installed"] == []
    assert facts["next"].startswith("gangpao pull tiny")
    by_name = {m["name"]: m for m in facts["models"]}
    qwen = by_name["qwen2.5-coder-1.5b"]
    assert qwen["expected_tps"] == pytest.approx(0.6 * 20e9 / qwen["bytes"], abs=0.06)
    assert qwen["fits"] == (qwen["memory_needed_bytes"] <= facts["memory_available_bytes"])
    assert "minicpm-2b-sft-bf16" not in by_name  # not run by our engine
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert facts["quiet"] is facts["machine"].startswith("quiet")
    for word in (
        "processor",
        "machine ",
        "kernels",
        "bandwidth",
        "20.0 GB/s",
        "qwen2.5-coder-1.5b",
        "largest that fits",
        "next:",
    ):
        assert word in text


def test_cpu_features(tmp_path):
    (tmp_path / "x86").write_text("processor: 0\nflags\t\t: fpu avx2 fma f16c avx512f\n")
    (tmp_path / "arm").write_text("processor: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert cpu_features(tmp_path / "x86") == ["avx2", "fma", "f16c", "avx512f"]
    assert cpu_features(tmp_path / "arm") == ["asimd", "asimddp", "i8mm"]
    assert cpu_features(tmp_path / "none") == []


def test_table():
    assert table(["a", "b"], [["1", "2"], ["333", ""]]) == "a    b\n1    2\n333"


def test_terminals_get_no_control_characters(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    screen.show("a\x1b]0;title\x07b\n\t\x9b山")
    assert capsys.readouterr().out == "a]0;titleb\n\t山"
