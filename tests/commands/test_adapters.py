"""--adapter of the commands: what is typed, and answers that are the adapter's."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gangpao import cli
from gangpao.commands.model import loading
from gangpao.commands.model.adapters import served
from gangpao.engine.generate import Engine
from gangpao.formats.adapters import write_peft
from gangpao.formats.adapters.typed import chosen, split_scale
from gangpao.serve.models import AdapterFile
from tests.engine.adapters import random_adapter
from tests.engine.tiny import write_tiny

MODEL, LAW, POET = "tiny.gguf", "law", "po:et"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    config = Engine.load(write_tiny(folder / MODEL), context=64, num_threads=1).model.config
    for seed, name in enumerate((LAW, POET)):
        write_peft(folder / name, random_adapter(config, seed))
    write_peft(folder / "wide", random_adapter(Engine.load(write_tiny(folder / "w.gguf"), context=64).model.config, 3))
    return folder


def answer(folder, capsys, *adapters):
    words = [x for one in adapters for x in ("--adapter", str(folder / one))]
    sampling = ["--temperature", "0", "--max-tokens", "24", "--repetition-penalty", "1", "--context", "256"]
    code = cli.main(["run", "-m", str(folder / MODEL), "--json", "--threads", "1", *sampling, *words, "hello"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)["text"]


def test_run_answers_with_adapters(folder, capsys):
    base = answer(folder, capsys)
    law, poet, both = (answer(folder, capsys, *given) for given in ([LAW], [POET], [LAW, f"{POET}:0.5"]))
    assert len({base, law, poet, both}) == 4
    assert answer(folder, capsys, f"{LAW}:0") == base
    assert answer(folder, capsys, f"{POET}:0.5", f"{LAW}:1") == both


def test_bench_measures_with_an_adapter(folder, capsys):
    words = ["--prompt-tokens", "8", "--decode-tokens", "4", "--repeat", "1", "--adapter", str(folder / LAW)]
    assert cli.main(["bench", str(folder / MODEL), *words]) == 0
    assert f"adapter      {folder / LAW}, 0.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "-m", MODEL, "--adapter", "nowhere", "hi"], "nowhere: no such file"),
        (["run", "-m", MODEL, "--adapter", LAW, "--adapter", f"{LAW}:2", "hi"], "is given twice"),
        (["run", "-m", MODEL, "--adapter", MODEL, "hi"], "tiny.gguf"),
        (["serve", "-m", MODEL, "--adapter", LAW], "write NAME=PATH"),
        (["serve", "-m", MODEL, "--adapter", f"tiny={LAW}"], "called tiny already"),
        (["serve", "-m", MODEL, "--adapter", "x=nowhere"], "--adapter x: .*nowhere: no such file"),
        (["chat", "--connect", "http://127.0.0.1:1", "--adapter", LAW], "--adapter: only for a model in this process"),
        (["bench", "--suite", "-m", MODEL, "--adapter", LAW], "without adapters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(folder, monkeypatch, capsys, words, message):
    import re

    monkeypatch.chdir(folder)
    assert cli.main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_colon_in_a_path_is_no_scale(tmp_path):
    (tmp_path / "a:2").mkdir()
    there = str(tmp_path / "a:2")
    assert split_scale(there) == (Path(there), 1.0)
    assert split_scale(f"{there}:0.5") == (Path(there), 0.5)
    assert split_scale("a:-1e-1") == (Path("a"), -0.1)
    assert split_scale("C:\\adapters\\x") == (Path("C:\\adapters\\x"), 1.0)
    assert split_scale(":2") == (Path(":2"), 1.0)


@pytest.mark.parametrize("scale", ["0,5", "-0,5", "1e9", "inf", "-1e7", "2x"])
def test_a_scale_that_is_none_is_told(tmp_path, scale):
    for path in (tmp_path, "nowhere"):
        with pytest.raises(ValueError, match=r"is no scale|must be a number"):
            split_scale(f"{path}:{scale}")


def test_names_and_files():
    assert chosen(["a", "b:2"]) == {"a": (Path("a"), 1.0), "b": (Path("b"), 2.0)}
    assert chosen(None) == {}
    assert served(["x=a=b:0.5"], "base", ["base"]) == {"x": AdapterFile("base", Path("a=b"), 0.5)}


def test_what_was_named_for_a_model_is_not_for_the_one_that_a_talk_goes_on_with():
    asked = []

    def load(name, **more):
        asked.append((name, more))
        return SimpleNamespace(name=f"{name}-of-the-file")

    loaded = loading.with_own(load, "a", ["x"], "sees.gguf")
    for name in ("a", "b", "a-of-the-file"):
        loaded(name)
    mine = {"adapters": ["x"], "mmproj": "sees.gguf"}
    assert asked == [("a", mine), ("b", {"mmproj": None}), ("a-of-the-file", mine)]
