"""Files as people have them: arrays, parquet, packed, texts; and where in them a row stands."""

import gzip
import json

import pytest

from gangpao.config import load_toml
from gangpao.tune.data.config import TuneData, TuneFile
from gangpao.tune.data.prepare import prepare
from gangpao.tune.data.rows import Fault, open_file
from tests.data import makers
from tests.tune.data.test_prepare import BPE, CHATML, PAIR, rows, talk


def found(path, **options):
    opened = open_file(TuneFile(path=path.name, **options), path.parent)
    return opened.kind, list(opened.examples())


def test_minicpm_s_own_format_is_an_array(tmp_path):
    content = [*rows(3), {"messages": [{"role": "user", "content": "x"}]}]
    (tmp_path / "a.json").write_text(json.dumps(content, indent=2))
    kind, examples = found(tmp_path / "a.json")
    assert kind == "answers"
    assert [where for where, _ in examples] == [f"{tmp_path}/a.json line {2 + 12 * i}" for i in range(4)]
    assert isinstance(examples[3][1], Fault)


def test_packed_lines_and_parquet(tmp_path):
    lines = "".join(json.dumps({**PAIR, "n": i}) + "\n" for i in range(3))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    kind, examples = found(tmp_path / "a.jsonl.gz")
    assert (kind, len(examples)) == ("pairs", 3)
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist([PAIR] * 2), tmp_path / "b.parquet")
    kind, examples = found(tmp_path / "b.parquet")
    assert (kind, [where for where, _ in examples]) == ("pairs", [f"{tmp_path}/b.parquet row {n}" for n in (1, 2)])


def test_texts_and_other_encodings(tmp_path):
    (tmp_path / "a.txt").write_text("words of a text")
    kind, ((where, document),) = found(tmp_path / "a.txt")
    assert (kind, where, document.text) == ("texts", f"{tmp_path}/a.txt", "words of a text")
    (tmp_path / "b.jsonl").write_bytes(json.dumps(talk("你好", "好"), ensure_ascii=False).encode("gb18030"))
    ((_, fault),) = found(tmp_path / "b.jsonl")[1]
    assert fault.reason == "encoding"
    assert 'encoding = "gb18030"' in fault.detail
    ((_, document),) = found(tmp_path / "b.jsonl", encoding="gb18030")[1]
    assert document.messages[0]["content"] == "你好"


def test_keys_and_forms_may_be_named(tmp_path):
    row = {"text": "words", "talk": talk("a", "b")["messages"], "body": "x"}
    makers.jsonl(tmp_path / "a.jsonl", [row] * 2)
    assert found(tmp_path / "a.jsonl")[0] == "texts"
    assert found(tmp_path / "a.jsonl", messages="talk")[1][0][1].messages[1]["content"] == "b"
    assert found(tmp_path / "a.jsonl", text="body")[1][0][1].text == "x"
    makers.jsonl(tmp_path / "b.jsonl", [{**PAIR, "completion": "c"}] * 2)
    assert found(tmp_path / "b.jsonl")[0] == "pairs"
    assert found(tmp_path / "b.jsonl", form="prompt")[0] == "answers"
    assert isinstance(found(tmp_path / "a.jsonl", form="pairs")[1][0][1], Fault)


def test_a_configuration_names_files_beside_it(tmp_path):
    makers.jsonl(tmp_path / "a.jsonl", rows(4))
    makers.jsonl(tmp_path / "b.jsonl", [talk("x", "y")])
    (tmp_path / "data.toml").write_text('files = ["a.jsonl", { path = "b.jsonl", weight = 2.0 }]\nheldout = 0\n')
    config = load_toml(tmp_path / "data.toml", TuneData).below(tmp_path)
    assert [file.weight for file in config.files] == [1.0, 2.0]
    prepared = prepare(config, BPE, CHATML, 128)
    assert [part.name for part in prepared.parts] == ["a.jsonl", "b.jsonl"]
    source = prepared.train()
    source.take(40)
    assert source.epochs["b.jsonl"] > 1.5 * source.epochs["a.jsonl"]
    for bad, why in (
        ("heldout = 1.5", "must be below 1"),
        ("files = 3", "files"),
        ('kind = "x"', "must be"),
        ("file = 1", "did you mean files"),
        ('files = ["a", "a"]', "twice"),
    ):
        (tmp_path / "bad.toml").write_text(bad)
        with pytest.raises(ValueError, match=rf"bad\.toml.*{why}"):
            load_toml(tmp_path / "bad.toml", TuneData)


def test_whoever_reads_rows_gets_conversations_that_begin_with_a_question(tmp_path):
    turns = talk("a", "b")["messages"]
    content = [{"messages": [turns[1], *turns, turns[0]]}, talk("c", "d")]
    (tmp_path / "a.json").write_text(json.dumps(content))
    opened = open_file(TuneFile(path="a.json"), tmp_path)
    seen = [([turn["role"] for turn in document.messages], opened.left) for _, document in opened.examples()]
    pair = ["user", "assistant"]
    assert seen == [(pair, "the answer that no question opens and the question behind the last answer"), (pair, "")]
