"""The forms in which other people publish texts and conversations: each is found by itself and says the same."""

import bz2
import gzip
import json
import lzma

import pytest

from gangpao.data.build import DataConfig, build
from gangpao.data.config import Source
from gangpao.data.sources.forms import Document, Malformed
from gangpao.data.sources.source import read, resolve
from gangpao.data.tokens.encode import Encoder
from gangpao.progress import Silent
from gangpao.text.tokenizer import Tokenizer
from tests.data import makers
from tests.data.cleaning.test_clean import CHINESE

TALK = [("user", "How high?"), ("assistant", "Two metres."), ("user", "And wide?"), ("assistant", "Three.")]
SYSTEM = ("system", "Be brief.")


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def sharegpt(*pairs):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": content} for role, content in pairs]


def found(path, **options):
    """(form, documents) of a source of one file."""
    source, files, _ = resolve(Source(path=path.name, **options), path.parent)
    return source.form, list(read(source, files))


def said(document):
    return [(turn["role"], turn["content"]) for turn in document.messages]


ROWS = {
    "openai": {"messages": turns(SYSTEM, *TALK)},
    "parts": {"messages": [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in (SYSTEM, *TALK)]},
    "developer": {"messages": turns(("developer", "Be brief."), *TALK), "id": 3},
    "sharegpt": {"conversations": sharegpt(SYSTEM, *TALK), "id": "x"},
    "sharegpt with system beside it": {"conversations": sharegpt(*TALK), "system": "Be brief.", "tools": ""},
    "minicpm-v": {"id": "0", "conversations": turns(SYSTEM, *TALK)},
    "trl": {"prompt": turns(SYSTEM, *TALK[:3]), "completion": turns(TALK[3])},
    "alpaca": {
        "instruction": "And wide?", "input": "", "output": "Three.", "system": "Be brief.",
        "history": [["How high?", "Two metres."]],
    },
    "minicpm": {"input": "<用户>How high?<AI>Two metres.<用户>And wide?<AI>", "output": "Three.", "system": "Be brief."},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_forms_of_conversations_say_the_same(tmp_path, name):
    form, documents = found(makers.jsonl(tmp_path / "a.jsonl", [ROWS[name]] * 3))
    assert form in ("messages", "alpaca", "prompt")
    assert [said(d) for d in documents] == [[SYSTEM, *TALK]] * 3


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n1 and 2"),
        ({"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "x"}, "Add.\n1 and 2"),
        ({"instruction": "Add.", "output": "3", "text": "Below is an instruction. Add. 3"}, "Add."),
        ({"prompt": "Add.", "completion": "3"}, "Add."),
        ({"prompt": "Add.", "response": "3", "score": 1}, "Add."),
        ({"question": "Add.", "answer": "3"}, "Add."),
        ({"query": "Add.", "response": "3"}, "Add."),
        ({"data": ["Add.", "3"], "id": "0"}, "Add."),
        ([{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}], "Add."),
    ],
)
def test_forms_of_single_questions(tmp_path, row, question):
    _, documents = found(makers.jsonl(tmp_path / "a.jsonl", [row, row]))
    assert [said(d) for d in documents] == [[("user", question), ("assistant", "3")]] * 2


@pytest.mark.parametrize(
    ("row", "options", "text"),
    [
        ({"content": "x", "score": 1}, {}, "x"),
        ({"text": "x", "question": "a", "answer": "b"}, {}, "x"),
        ({"input": "", "output": "x"}, {}, "x"),
        ({"body": "x", "text": "y"}, {"text": "body"}, "x"),
        ({"text": "x", "messages": turns(*TALK)}, {"form": "text"}, "x"),
        ({"text": "x", "messages": turns(*TALK)}, {"text": "text"}, "x"),
    ],
)
def test_forms_of_texts(tmp_path, row, options, text):
    assert found(makers.jsonl(tmp_path / "a.jsonl", [row]), **options) == ("text", [Document(text)])


CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOL = {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}}
AS_OPENAI = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL_ROWS = {
    "null content": {
        "messages": [
            *turns(("user", "Weather?")), {"role": "assistant", "content": None, "tool_calls": [AS_OPENAI]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"}, *turns(("assistant", "It rains.")),
        ],
        "tools": [{"type": "function", "function": TOOL}],
    },
    "no content": {
        "messages": [
            *turns(("user", "Weather?")), {"role": "assistant", "tool_calls": [{"function": CALL}]},
            {"role": "function", "name": "weather", "content": "rain"}, *turns(("assistant", "It rains.")),
        ],
        "tools": json.dumps([TOOL]),
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Weather?"}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([TOOL]),
    },
    "hermes": {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
            {"from": "tool", "value": "<tool_response>\nrain\n</tool_response>"}, {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([TOOL]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TOOL_ROWS)
def test_calls_are_learned_and_results_are_not(tmp_path, name):
    _, (document,) = found(makers.jsonl(tmp_path / "a.jsonl", [TOOL_ROWS[name]]))
    assert said(document) == [("user", "Weather?"), ("assistant", ""), ("tool", "rain"), ("assistant", "It rains.")]
    rows = [{"text": json.dumps(TOOL_ROWS)} for _ in range(3)]
    makers.jsonl(tmp_path / "b.jsonl", rows)
    built = build(config(tmp_path, b={"path": "b.jsonl", "dedup": "none"}), tmp_path / "out")
    ids, mask = Encoder(built.tokenizer_dir).chat(document.messages, document.tools)
    tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
    learned = tokenizer.decode([token for token, mine in zip(ids, mask, strict=True) if mine])
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in learned
    assert learned.endswith("It rains.")
    assert "rain\n" not in learned
    assert "Tells the weather." in tokenizer.decode(ids)


def config(folder, **sources):
    for source in sources.values():
        source.setdefault("clean", {"min_chars": 1})
    return DataConfig.model_validate(
        {"root": str(folder), "sources": sources, "tokenizer": {"train": {"vocab_size": 400}}}
    )


PACKERS = {"": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
SHAPES = {
    "lines": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    "array": lambda rows: json.dumps(rows, ensure_ascii=False),
    "pretty array": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1),
    "array of lines": lambda rows: "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n",
    "pretty values": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
    "with a mark": lambda rows: "\ufeff" + json.dumps(rows, ensure_ascii=False),
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_json_of_every_shape(tmp_path, shape, packed):
    rows = [{"text": f'文 {i} " [ {{ \\' + "x" * (i * 997 % 3000), "n": [i, {"m": None}]} for i in range(200)]
    path = tmp_path / f"a.json{packed}"
    path.write_bytes(PACKERS[packed](SHAPES[shape](rows).encode()))
    assert [d.text for d in found(path)[1]] == [row["text"] for row in rows]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_arrays_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("gangpao.data.sources.files._CHUNK", chunk)
    rows = [{"text": f"é字{i}" * (i % 7 + 1), "n": i * 1.5} for i in range(40)]
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        source = Source(path="a.json", text="text")
        assert [d.text for d in read(source, [tmp_path / "a.json"])] == [row["text"] for row in rows]


def test_damaged_arrays_and_archives_are_errors(tmp_path):
    text = json.dumps([{"text": "one"}, {"text": "two"}], indent=1)
    path = tmp_path / "a.json"
    for content, error in ((text[:-1], "cut short"), (text[:-9], "damaged JSON in the value that begins in line 5")):
        path.write_text(content)
        with pytest.raises(ValueError, match=error):
            found(path)
    packed = tmp_path / "a.jsonl.gz"
    for damage in (gzip.compress(text.encode())[:-12], b"no gzip at all"):
        packed.write_bytes(damage)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: (the file was cut short|damaged, or not a \.gz file)"):
            found(packed)


def test_text_files_may_be_packed(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(CHINESE.encode()))
    assert found(tmp_path / "a.txt.gz") == ("text", [Document(CHINESE)])


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_other_encodings_are_named_and_read(tmp_path, encoding, name):
    text = "Größe und Maß: ä, ö, ü. " * 4 if encoding == "latin-1" else "河流發源於北方的山區，流經三個城鎮。" * 4
    rows = [{"text": text}, {"text": "plain"}]
    shape = {"a.jsonl": SHAPES["lines"], "a.json": SHAPES["pretty array"]}.get(name, lambda rows: rows[0]["text"])
    (tmp_path / name).write_bytes(shape(rows).encode(encoding))
    _, documents = found(tmp_path / name, encoding=encoding)
    assert documents[0] == Document(text)
    with pytest.raises(ValueError, match=rf'(?s){name}.*byte \d+ \(0x..\) is not UTF-8.*encoding = "') as error:
        build(config(tmp_path, s={"path": name}), tmp_path / "out")
    if encoding in ("gb18030", "utf-16"):
        assert f'encoding = "{encoding}"' in str(error.value)


def test_a_few_damaged_rows_are_counted_and_named(tmp_path):
    lines = [json.dumps({"text": f"Row {i} says something of its own {i}."}).encode() for i in range(60)]
    lines[7], lines[30], lines[44] = b'{"text": "cut of', b'{"text": "\xb0\xa1"}', b'{"body": "x"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    built = build(config(tmp_path, s={"path": "a.jsonl"}), tmp_path / "out")
    report = built.report["sources"]["s"]
    assert report["dropped"]["malformed"] == 3
    assert [row["where"] for row in report["malformed"]] == [f"{tmp_path}/a.jsonl line {n}" for n in (8, 31, 45)]
    assert [row["why"][:20] for row in report["malformed"]] == [
        "is no JSON: Unterminate"[:20],
        "byte 11 (0xb0) is no",
        "has no text under 't",
    ]


PREFERENCE = [{"question": "a", "chosen": "b", "rejected": "c"}] * 902


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (PREFERENCE, {}, "902 of 902 rows have no text under 'text'; the first has question, chosen, rejected; set text ="),
        ([ROWS["alpaca"]] * 9, {"text": "text"}, 'the first has instruction, input, output, system, history; leave out .*"auto"'),
        ([ROWS["alpaca"]] * 9, {"messages": "talk"}, r"no conversation under 'talk'; .*it finds instruction, input, output"),
        ([{"text": "x"}] * 9, {"form": "alpaca"}, r"not the form 'alpaca'; the first has text; .*a text under 'text'"),
        ([3, 4], {}, "2 of 2 rows .*the first has no keys: it is a int"),
    ],
)  # fmt: skip
def test_a_source_of_another_form_says_what_it_holds(tmp_path, rows, options, said):
    makers.jsonl(tmp_path / "s.jsonl", rows)
    makers.jsonl(tmp_path / "good.jsonl", [{"text": f"Good text number {i} {i}."} for i in range(20)])
    settings = config(tmp_path, good={"path": "good.jsonl"}, s={"path": "s.jsonl", **options})
    with pytest.raises(ValueError, match=f"source s: .*{said}"):
        build(settings, tmp_path / "out")


def test_what_was_found_is_said(tmp_path):
    notes = []

    class Notes(Silent):
        def note(self, text):
            notes.append(text)

    makers.jsonl(
        tmp_path / "s.jsonl", [{"instruction": f"Say {i}.", "input": "", "output": f"{i}!"} for i in range(50)]
    )
    built = build(config(tmp_path, s={"path": "s.jsonl", "heldout": 5}), tmp_path / "out", progress=Notes())
    assert 'source s: rows hold instruction, input, output, read as form = "alpaca"' in notes
    assert built.train["s"].supervised
    assert built.train["s"].num_documents == 45


def test_a_folder_and_a_wrong_name_say_what_is_there(tmp_path):
    makers.jsonl(tmp_path / "texts" / "a.jsonl", [{"text": "x"}])
    for path, said in (
        ("texts", r"is a folder; name files in it, for example path = 'texts/\*\.jsonl'"),
        ("texts/b.jsonl", r"there is no such file; .*texts has a\.jsonl\. Relative paths start at root, which is "),
    ):
        with pytest.raises(ValueError, match=f"source s: .*{said}"):
            build(config(tmp_path, s={"path": path}), tmp_path / "out")


def test_a_malformed_row_is_no_document(tmp_path):
    path = makers.jsonl(tmp_path / "a.jsonl", [{"text": 3}])
    assert found(path, text="text")[1] == [Malformed(f"{path} line 1", "has no text under 'text'")]
