"""The whole way from files to shards: what is kept, what is dropped, that nothing is done twice, that kills do no harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gangpao.data import build as module
from gangpao.data.build import DataConfig, build, load_data_config, open_built
from gangpao.data.tokens.pack import Loader
from gangpao.progress import Progress, Silent
from gangpao.text.tokenizer import Tokenizer
from tests.data import makers
from tests.data.cleaning.test_clean import CHINESE, PROSE

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("GANGPAO_SHARED", ROOT.parent / "shared"))
ITEM = "In which year did the fishermen of the northern harbour build their first wooden lighthouse on the rocks?"


class Notes(Silent):
    """What a build says it does."""

    def __init__(self):
        super().__init__()
        self.said = []

    def start(self, label, total, done=0):
        self.said.append(label)

    def note(self, text):
        self.said.append(text)


def story(i):
    random = np.random.default_rng(i)
    return f"Story {i}. " + " ".join(makers.words(random, 60)) + ".\n" + PROSE


@pytest.fixture
def inputs(tmp_path):
    """Two sources of text with known faults, one of conversations, one evaluation file."""
    root = tmp_path / "in"
    rows = [{"text": story(i)} for i in range(100)]
    rows += [{"text": story(3)}, {"text": story(4).replace("\n", "  \r\n").upper()}]  # equal
    rows += [{"text": story(5) + " One more sentence at the end."}]  # similar
    rows += [{"text": f"{story(200)} {ITEM} {story(201)}"}]  # contaminated
    rows += [{"text": "tiny"}, {"no": "text"}, {"text": CHINESE * 2}]  # too short, malformed, language
    makers.jsonl(root / "a.jsonl", rows)
    makers.jsonl(root / "b.jsonl", [{"text": story(i)} for i in (*range(90, 130), 7)])
    talks = [
        [
            {"role": "user", "content": f"What comes after {i // 4}?"},
            {"role": "assistant", "content": f"{i}, I think, it is {i}."},
        ]
        for i in range(80)
    ]
    makers.jsonl(root / "talks.jsonl", [{"messages": m} for m in [*talks, talks[0], [talks[0][0]]]])
    makers.jsonl(root / "eval.jsonl", [{"question": ITEM, "answer": "1907"}])
    return root


def config(folder, **changes):
    base = {
        "root": str(folder),
        "sources": {
            "a": {"path": "a.jsonl", "language": "en", "heldout": 10},
            "b": {"path": "b.jsonl", "heldout": 0.2},
            "talks": {"path": "talks.jsonl", "messages": "messages", "heldout": 0.25},
        },
        "tokenizer": {"train": {"vocab_size": 400}},
        "decontaminate": {"files": ["eval.jsonl"]},
        "stages": {"stable": {"a": 2, "b": 1}, "sft": {"talks": 1}},
    }
    return DataConfig.model_validate(base | changes)


def decoded(built, group="train"):
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    return {
        name: [tokenizer.decode(s.document(i).tolist()) for i in range(s.num_documents)]
        for name, s in getattr(built, group).items()
    }


def everything(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "inputs.json"
    }


def test_what_is_kept_is_the_text_and_what_is_dropped_is_counted(inputs, tmp_path):
    built = build(config(inputs), tmp_path / "out")
    train, held = decoded(built), decoded(built, "heldout")
    assert sorted(train["a"] + held["a"]) == sorted(story(i).strip() for i in range(100))
    assert sorted(train["b"] + held["b"]) == sorted(story(i).strip() for i in range(100, 130))
    assert len(held["a"]) == 10
    assert 0 < len(held["b"]) < 15
    report = built.report["sources"]
    assert report["a"]["dropped"] == {
        "malformed": 1, "too short": 1, "language": 1, "contaminated": 1, "duplicate": 2, "near duplicate": 1,
    }  # fmt: skip
    assert report["b"]["dropped"] == {"duplicate": 11}
    assert report["talks"]["dropped"] == {"duplicate": 1, "malformed": 1}
    for name, found in report.items():
        assert (
            found["read"]
            == sum(found["dropped"].values()) + found["train"]["documents"] + found["heldout"]["documents"]
        )
        assert found["train"]["tokens"] == built.train[name].num_tokens
    assert report["a"]["contaminated"]["documents"] == {"eval.jsonl": 1}
    assert built.report["evaluation"]["eval.jsonl"]["items"] == 1
    assert built.report["duplicates"][0]["similarity"] >= 0.8


def test_sizes_in_bytes_and_tokens(inputs, tmp_path):
    built = build(config(inputs), tmp_path / "out")
    assert built.vocab_size == 400 == Tokenizer.from_dir(built.tokenizer_dir).vocab_size
    for group in ("train", "heldout"):
        for name in ("a", "b"):
            shards, texts = getattr(built, group)[name], decoded(built, group)[name]
            assert shards.num_bytes == sum(len(t.encode()) for t in texts)
            assert (shards.tokens[shards.offsets[:-1].astype(int)] == 0).all(), "every document begins with BOS"
            assert (shards.tokens[shards.offsets[1:].astype(int) - 1] == 1).all(), "and ends with EOS"
    talks = built.train["talks"]
    assert talks.supervised
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    size = 0
    for i in range(talks.num_documents):
        learned = talks.document(i)[talks.document_mask(i) == 1].tolist()
        answer = tokenizer.decode(learned)
        assert answer.endswith(".")
        assert learned[-1] == tokenizer.id_of("<|im_end|>")
        size += len(answer.encode())
    assert talks.num_bytes == size


def test_questions_that_start_alike_are_on_one_side(inputs, tmp_path):
    built = build(config(inputs), tmp_path / "out")
    sides = [{text.split("?")[0] for text in decoded(built, group)["talks"]} for group in ("train", "heldout")]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_who_is_held_out_does_not_depend_on_the_rest(inputs, tmp_path):
    first = set(decoded(build(config(inputs), tmp_path / "one"), "heldout")["b"])
    makers.jsonl(inputs / "b.jsonl", [{"text": story(i)} for i in range(170, 99, -1)])
    second = decoded(build(config(inputs), tmp_path / "two"), "heldout")["b"]
    old = {story(i).strip() for i in range(100, 130)}
    assert set(second) & old == first
    assert set(second) - old


def test_nothing_is_done_twice(inputs, tmp_path):
    out = tmp_path / "out"
    first = build(config(inputs), out)
    before = everything(out)
    notes = Notes()
    again = build(config(inputs), out, progress=notes)
    assert everything(out) == before
    assert notes.said == [f"{out}: nothing to do, it is what the configuration says"]
    assert again.fingerprint == first.fingerprint == open_built(out).fingerprint
    for path in inputs.iterdir():
        os.utime(path)  # a new date, the same content
    moved = inputs.rename(tmp_path / "moved")
    notes = Notes()
    build(config(moved), out, progress=notes)
    assert len(notes.said) == 1, "another place and date of the same files"
    assert everything(out) == before


def test_two_builds_are_equal_to_the_byte(inputs, tmp_path):
    a, b = build(config(inputs), tmp_path / "one"), build(config(inputs), tmp_path / "two")
    assert a.fingerprint == b.fingerprint
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_a_change_redoes_what_depends_on_it(inputs, tmp_path):
    out = tmp_path / "out"

    def said(settings):
        notes = Notes()
        built = build(settings, out, progress=notes)
        return built, [what for what in notes.said if not what.startswith(("reading", "source"))]

    first, steps = said(config(inputs))
    assert steps == [
        "cleaning a", "cleaning b", "cleaning talks", "looking for duplicates", "training a vocabulary of 400 pieces",
        "tokens of a", "tokens of b", "tokens of talks",
    ]  # fmt: skip
    weights, steps = said(config(inputs, stages={"stable": {"b": 1}}))
    assert steps == []
    assert weights.fingerprint == first.fingerprint
    assert list(weights.stages) == ["stable"]
    smaller, steps = said(config(inputs, tokenizer={"train": {"vocab_size": 350}}))
    assert steps == ["training a vocabulary of 350 pieces", "tokens of a", "tokens of b", "tokens of talks"]
    assert smaller.fingerprint != first.fingerprint
    makers.jsonl(inputs / "b.jsonl", [{"text": story(i)} for i in range(100, 160)])
    changed, steps = said(config(inputs))
    assert [s for s in steps if s.startswith("cleaning")] == ["cleaning b"]
    assert changed.train["b"].num_documents > first.train["b"].num_documents
    assert len(list((out / "shards").iterdir())) == 3
    assert len(list(out.glob("tokenizer-*"))) == 1, "what belongs to older settings is gone"


def test_a_damaged_build_is_not_opened_and_is_repaired(inputs, tmp_path):
    out = tmp_path / "out"
    first = build(config(inputs), out)
    listed = json.loads((out / "built.json").read_text())
    for change in (
        {"version": 0},
        {"tokenizer": "../elsewhere"},
        {"shards": {"a": "../../x"}},
        {"shards": {}},
        {"extra": 1},
    ):
        (out / "built.json").write_text(json.dumps(listed | change))
        with pytest.raises(ValueError, match="build the data again"):
            open_built(out)
    (out / "built.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_built(out)
    assert build(config(inputs), out).fingerprint == first.fingerprint
    shutil.rmtree(first.train["a"].path)
    with pytest.raises(ValueError, match="no token shards"):
        open_built(out)
    with pytest.raises(ValueError, match="no finished data"):
        open_built(tmp_path / "nothing")


def test_work_may_be_deleted(inputs, tmp_path):
    out = tmp_path / "out"
    first = build(config(inputs), out)
    shutil.rmtree(out / "work")
    notes = Notes()
    assert build(config(inputs), out, progress=notes).fingerprint == first.fingerprint
    assert len(notes.said) == 1


BUILD = """
import sys
from tests.data.test_build import config
from pathlib import Path
from gangpao.data.build import build
if __name__ == "__main__":
    build(config(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_build_goes_on_to_the_same_result(inputs, tmp_path, kills):
    """Kill it again and again after random times; never is anything half-made, and the end is that of a quiet build."""
    quiet = build(config(inputs), tmp_path / "quiet")
    out = tmp_path / "killed"
    random = np.random.default_rng(kills)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    for n in range(kills):
        with subprocess.Popen([sys.executable, "-c", BUILD, str(inputs), str(out)], env=environment) as child:
            time.sleep(float(random.uniform(0.4, 1.6)))
            child.send_signal(signal.SIGKILL)
        if (out / "built.json").exists():
            built = open_built(out)
            assert built.fingerprint == quiet.fingerprint
            for shards in (*built.train.values(), *built.heldout.values()):
                shards.verify()
            if n % 2:
                (out / "built.json").unlink()
                shutil.rmtree(out / "shards")
    assert build(config(inputs), out).fingerprint == quiet.fingerprint
    assert everything(out) == everything(tmp_path / "quiet"), "and no leftovers"


def test_processes_give_what_one_process_gives(inputs, tmp_path, monkeypatch):
    one = build(config(inputs), tmp_path / "one")
    monkeypatch.setattr(module, "_POOL_BYTES", 0)
    monkeypatch.setattr(module.machine, "logical_cores", lambda: 2)
    notes = Notes()
    two = build(config(inputs), tmp_path / "two", progress=notes)
    assert "cleaning 3 sources" in notes.said
    assert everything(tmp_path / "two") == everything(tmp_path / "one")
    assert one.fingerprint == two.fingerprint
    (inputs / "b.jsonl.zst").write_bytes(b"not zstd")
    broken = config(inputs, sources={"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl.zst"}}, stages={})
    pytest.importorskip("zstandard")
    with pytest.raises(ValueError, match=r"b\.jsonl\.zst"):
        build(broken, tmp_path / "two")
    assert open_built(tmp_path / "two").fingerprint == two.fingerprint, "the old build is still there"


def test_limits_and_shares(inputs, tmp_path):
    def kept(**options):
        sources = {"b": {"path": "b.jsonl", "heldout": 0.0, **options}}
        built = build(config(inputs, sources=sources, stages={}), tmp_path / "out")
        return built.report["sources"]["b"], decoded(built)["b"]

    found, texts = kept(max_documents=5)
    assert texts == [story(i).strip() for i in range(90, 95)]
    assert found["stopped"]
    found, texts = kept(max_bytes=3000)
    assert sum(len(t.encode()) for t in texts) - len(texts[-1].encode()) < 3000 <= sum(len(t.encode()) for t in texts)
    found, texts = kept(share=0.5)
    assert 8 < len(texts) < 33
    assert found["dropped"]["not sampled"] == 41 - len(texts)
    assert set(kept(share=0.25)[1]) < set(texts)


def test_dedup_modes(inputs, tmp_path):
    def stays(mode):
        sources = {"a": {"path": "a.jsonl", "dedup": mode, "heldout": 0}}
        return build(config(inputs, sources=sources, stages={}), tmp_path / mode).train["a"].num_documents

    assert (stays("near"), stays("exact"), stays("none")) == (
        101,
        102,
        104,
    )  # the Chinese one stays, no language is asked


def test_a_given_tokenizer_is_copied(inputs, tmp_path):
    first = build(config(inputs), tmp_path / "one")
    folder = tmp_path / "given"
    shutil.copytree(first.tokenizer_dir, folder)
    (folder / "model.safetensors").write_bytes(b"not for us")
    built = build(config(inputs, tokenizer={"dir": str(folder)}), tmp_path / "two")
    assert {n: s.fingerprint for n, s in built.train.items()} == {n: s.fingerprint for n, s in first.train.items()}
    assert not (built.tokenizer_dir / "model.safetensors").exists()
    shutil.rmtree(folder)
    assert open_built(tmp_path / "two").vocab_size == 400
    with pytest.raises(ValueError, match="holds no tokenizer"):
        build(config(inputs, tokenizer={"dir": str(tmp_path)}), tmp_path / "three")


def test_the_stages_make_loaders(inputs, tmp_path):
    built = build(config(inputs), tmp_path / "out")
    one = Loader(built.parts("stable"), seq_len=32, seed=0)
    one.take(120)
    assert one.tokens_seen["a"] / one.tokens_seen["b"] == pytest.approx(2, rel=0.05)
    with pytest.raises(ValueError, match="it has stable, sft"):
        built.parts("anneal")
    sizes = build(config(inputs, stages={}), tmp_path / "out").stages["stable"]
    assert sizes == {name: built.train[name].num_tokens for name in built.train}


def test_an_empty_source_is_no_crash(inputs, tmp_path):
    makers.jsonl(inputs / "b.jsonl", [{"text": "x"}])
    built = build(config(inputs), tmp_path / "out")
    assert built.train["b"].num_documents == 0
    assert "b" not in built.heldout
    with pytest.raises(ValueError, match=r"source b has a weight of 1\.0 and no documents"):
        Loader(built.parts("stable"), seq_len=8, seed=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sources.a.path=missing.jsonl", "missing.jsonl: there is no such file"),
        ("sources.a.langage=en", "did you mean language"),
        ("sources.a.heldout=1.5", "must be below 1"),
        ('sources."x/y".path=a', "letters, digits"),
        ("stages.stable.nobody=1", "unknown sources: nobody"),
        ("stages.stable.a=-1", "numbers from 0 up"),
        ("tokenizer.dir=x", "either tokenizer.dir or"),
        ("root=nowhere", "nowhere is not a folder"),
        ('decontaminate.files=["none*.jsonl"]', "no such file"),
        ("sources.c.text=x", "path is missing"),
    ],
)
def test_mistakes_are_explained(inputs, tmp_path, change, said):
    path = tmp_path / "c.toml"
    path.write_text(
        f'root = "{inputs}"\n[tokenizer.train]\nvocab_size = 600\n[sources.a]\npath = "a.jsonl"\n[stages.stable]\na = 1\n'
    )
    load_data_config(path)
    with pytest.raises(ValueError, match=said):
        build(load_data_config(path, [change]), tmp_path / "out")


def test_paths_are_relative_to_the_file_and_those_of_overrides_to_the_current_folder(inputs, tmp_path, monkeypatch):
    built = build(config(inputs), tmp_path / "first")
    shutil.copytree(built.tokenizer_dir, inputs / "given")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = '[sources.a]\npath = "a.jsonl"\n[tokenizer]\ndir = "{}"\n'
    (inputs / "plain.toml").write_text(text.format("given"))
    (tmp_path / "up.toml").write_text('root = "in"\n' + text.format("in/given"))
    for path, overrides in (
        (Path("../in/plain.toml"), []),
        (Path("../up.toml"), []),
        (tmp_path / "up.toml", ["root=../in", "tokenizer.dir=../in/given"]),
    ):
        settings = load_data_config(path, overrides)
        assert Path(settings.root).is_absolute()
        assert build(settings, tmp_path / "out").train["a"].num_documents
    with pytest.raises(ValueError, match="no-such is not a folder"):
        build(load_data_config(tmp_path / "up.toml", ["root=no-such"]), tmp_path / "out")


def test_the_tiny_corpus_builds_without_any_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    built = build(load_data_config(ROOT / "configs" / "data-tiny.toml"), tmp_path / "out", progress=Progress())
    assert time.monotonic() - start < 30
    assert built.vocab_size == 1024
    assert set(built.heldout) == {"stories", "sums", "talks"}
    assert built.train["stories"].num_tokens > 100_000
    assert built.report["sources"]["stories"]["dropped"].get("near duplicate", 0) < 300
    for stage in built.stages:
        Loader(built.parts(stage), seq_len=64, seed=0).take(8)


@pytest.mark.slow
def test_the_nano_corpus(tmp_path):
    if not (SHARED / "data" / "text").is_dir():
        pytest.skip("the shared data is not there: set GANGPAO_SHARED to the folder that holds data/text")
    pytest.importorskip("zstandard")
    settings = load_data_config(ROOT / "configs" / "data-nano.toml", [f"root={SHARED / 'data'}"])
    built = build(settings, tmp_path / "out")
    total = sum(s.num_tokens for s in built.train.values())
    assert 20e6 < total < 45e6
    assert 8000 < built.vocab_size <= 8192
    assert sum(s["dropped"].get("contaminated", 0) for s in built.report["sources"].values()) > 0
    for stage in built.stages:
        Loader(built.parts(stage), seq_len=512, seed=0).take(64)
