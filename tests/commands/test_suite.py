"""`gangpao bench --suite`: turns, resuming, what is left out, medians; over tiny models, mostly with speeds that are made up."""

import json
from pathlib import Path

import pytest

from gangpao import cli, kernels, machine
from gangpao.commands.speed import sample, suite
from gangpao.engine.generate import Engine
from gangpao.evaluate.pricing import measured
from gangpao.evaluate.results import Speed
from tests.engine.tiny import CONTEXT, write_tiny


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two models in files, and a store of one's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    return [str(write_tiny(tmp_path / f"{name}.gguf", seed)) for seed, name in enumerate("ab")]


@pytest.fixture
def made_up(monkeypatch):
    """Speeds that count up, and the calls in their order."""
    calls = []

    def alone(engine, ids, decode_tokens):
        calls.append((engine.name, len(ids), 0))
        return 100.0 + len(calls), 10.0 + len(calls)

    def together(engine, context, batch, decode_tokens):
        calls.append((engine.name, context, batch))
        return 20.0 * batch + len(calls), 1_000_000

    monkeypatch.setattr(machine, "git_commit", lambda: "0123abc")
    monkeypatch.setattr(sample, "alone", alone)
    monkeypatch.setattr(sample, "together", together)
    return calls


def bench(models, *args):
    named = [part for model in models for part in ("-m", model)]
    return cli.main(["bench", "--suite", *named, "--decode-tokens", "4", *map(str, args)])


def test_answers_together_are_as_many_and_as_long_as_asked(models, monkeypatch):
    engine = Engine.load(models[0], context=64)
    seen = []
    submit = sample.Scheduler.submit

    def watched(self, request, on_event):
        seen.append((request, submit(self, request, on_event)))
        return seen[-1][1]

    monkeypatch.setattr(sample.Scheduler, "submit", watched)
    tps, cache_bytes = sample.together(engine, context=40, batch=3, decode_tokens=7)
    assert tps > 0
    assert cache_bytes >= 3 * 47 * 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, width, float16
    writing = [(request, handle) for request, handle in seen if not request.prompt_only]
    assert len(writing) == 3
    assert len({tuple(request.prompt_ids) for request, _ in writing}) == 3
    for _, handle in writing:
        assert handle.stats.completion_tokens == 7
        assert handle.stats.cached_tokens == 39  # the prompt was read before the clock ran


def test_what_fails_in_the_scheduler_is_raised(models, monkeypatch):
    engine = Engine.load(models[0], context=64)
    monkeypatch.setattr(engine.model.__class__, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample.together(engine, context=8, batch=2, decode_tokens=2)


def test_models_take_turns(models, made_up, capsys):
    assert bench(models, "--contexts", "16,32", "--batches", "1,2", "--repeat", 2) == 0
    one_turn = [(c, b) for c in (16, 32) for b in (0, 1, 2)]
    assert made_up == [(name, *cell) for _ in range(2) for name in "ab" for cell in one_turn]
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert [(r["model"], r["context"], r["batch"]) for r in found["rows"]] == [
        (name, context, batch) for context in (16, 32) for batch in (1, 2) for name in "ab"
    ]
    first = found["rows"][0]  # calls 1 and 13 were alone, 2 and 14 with one answer
    assert (first["prefill_tps"], first["prefill_range"]) == (107, [101, 113])
    assert (first["batch_tps"], first["batch_range"], first["samples"]) == (28, [22, 34], 2)
    assert set(found["conditions"]["models"]) == {"a", "b"}
    assert {"cpu", "commit", "kernels", "threads", "kv"} <= set(found["conditions"])
    assert "commit 0123abc" in out
    assert "| a | 16 | 1 | 107.0 (101.0 to 113.0) |" in out
    assert "round 2 of 2: b, 32 tokens, 2 at once" in err
    assert "left" in err


def test_a_suite_goes_on_where_it_was(models, made_up, tmp_path, capsys):
    out, journal = tmp_path / "new/s", tmp_path / "new/s/journal.jsonl"
    args = ["--contexts", "16", "--batches", "2", "--repeat", 2, "--out", out]
    assert bench(models, *args) == 0
    whole, calls = capsys.readouterr().out, len(made_up)
    assert calls == 8
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # killed in the middle of the fourth sample
    assert bench(models, *args) == 0
    assert made_up[calls:] == [("b", 16, 2), *made_up[4:8]]
    assert len(journal.read_bytes().splitlines()) == 9
    made_up.clear()
    text = capsys.readouterr()
    assert "3 samples are there, 5 are missing" in text.err
    assert bench(models, *args) == 0
    assert made_up == []
    assert capsys.readouterr().out == text.out != whole
    assert (out / "suite.md").read_text() == text.out.rpartition("\n{")[0] + "\n"
    assert json.loads((out / "suite.json").read_text()) == json.loads(text.out.splitlines()[-1])
    assert measured.read(out, model="a").batch == 2
    assert bench(models, *args[:-4], "--repeat", 3, "--out", out) == 0  # more repetitions of the same
    assert len(made_up) == 4


def test_samples_of_other_conditions_are_refused(models, made_up, tmp_path, capsys):
    out = tmp_path / "s"
    assert bench(models, "--contexts", "16", "--batches", "2", "--repeat", 1, "--out", out) == 0
    before = (out / "journal.jsonl").read_bytes()
    assert bench(models[:1], "--contexts", "16", "--batches", "2", "--kv", "int8", "--out", out) == 2
    assert "kv was 'f16', is 'int8'; models was" in capsys.readouterr().err
    assert (out / "journal.jsonl").read_bytes() == before


def test_what_does_not_fit_is_left_out_with_its_reason(models, made_up, tmp_path, capsys, monkeypatch):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(Path(models[0]).read_bytes())
    load = suite.loading.load_engine

    def refusing(model, **options):
        if model == str(bad):
            raise ValueError("not enough memory: it needs all of it")
        return load(model, **options)

    monkeypatch.setattr(suite.loading, "load_engine", refusing)
    needed = suite.bytes_needed
    monkeypatch.setattr(suite, "bytes_needed", lambda c, tokens, kv: 1 << 60 if tokens > 200 else needed(c, tokens, kv))
    args = ("--contexts", f"16,{CONTEXT - 3}", "--batches", "1,8", "--repeat", 2)
    assert bench([models[0], str(bad)], *args) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert [(r["model"], r["context"], r["batch"]) for r in found["rows"]] == [("a", 16, 1)]
    left = "\n".join(found["left_out"])
    assert f"a, {CONTEXT - 3} tokens: the model knows {CONTEXT} positions" in left
    assert "bad: not enough memory" in left
    assert "a, 16 tokens, 8 at once: the cache needs" in left
    assert err.count("bad is left out: not enough memory") == 1
    assert "- left out: bad: not enough memory" in out


def test_the_price_of_a_row(models, made_up, tmp_path, capsys):
    assert bench(models, "--contexts", "16", "--batches", "1,2", "--repeat", 1) == 0
    (tmp_path / "out").write_text(capsys.readouterr().out)
    found = measured.read(tmp_path / "out", model="b")
    assert (found.batch, found.prefill_tps, found.decode_tps, found.batch_tps) == (2, 104, 14, 46)
    row = json.loads((tmp_path / "out").read_text().splitlines()[-1])["rows"][0]
    speed = Speed(**{name: row[name] for name in Speed.model_fields})  # what a result of an evaluation calls them
    assert (speed.batch, speed.prefill_tps) == (1, 101)


def test_others_at_work_are_said(models, made_up, monkeypatch, capsys):
    monkeypatch.setattr(machine.Watch, "read", lambda _: machine.Busy(2, 1.5, 0.0, 3.0))
    assert bench(models[:1], "--contexts", "16", "--batches", "1", "--repeat", 1) == 0
    out = capsys.readouterr().out
    assert "| 1.5, BUSY |" in out
    assert "repeat when the machine is quiet" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite"], "--suite compares models: name them"),
        ([], "no model is named: gangpao bench MODEL"),
        (["-m", "x", "-m", "y"], "2 models, and one is measured"),
        (["--suite", "-m", "A", "--contexts", "a"], "--contexts 'a': write whole numbers"),
        (["--suite", "-m", "A", "--batches", "0,1"], "--batches '0,1': each is between 1 and 256"),
        (["--suite", "-m", "A", "-m", "A"], "named twice"),
        (["--suite", "-m", "A", "--out", "A"], "is a file; name a folder"),
    ],
)
def test_mistakes_are_said(args, message, models, capsys):
    assert cli.main(["bench", *[models[0] if a == "A" else a for a in args]]) == 2
    assert message in capsys.readouterr().err


def test_one_model_by_its_option(models, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "read_bandwidth", lambda: 20.0)
    args = ["--prompt-tokens", "20", "--decode-tokens", "2", "--repeat", "1"]
    assert cli.main(["bench", "-m", models[0], *args]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["decode_tps"] > 0
