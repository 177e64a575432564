"""Every format gives the same documents; damaged files and strange rows are noticed, never swallowed."""

import json
import sys

import pytest

from gangpao.data.config import Source
from gangpao.data.sources import files as module
from gangpao.data.sources.forms import Document, Malformed
from gangpao.data.sources.source import files_of, read
from tests.data import makers

ROWS = [{"text": f"Dokument {i}\nmit Zeilen und 字 {'x' * (i * 37 % 300)}", "other": i} for i in range(300)]


def texts(path, **options):
    source = Source(path=str(path), **options)
    return [d.text if isinstance(d, Document) else None for d in read(source, files_of(source, path.parent))]


def zst(path, data, *, frames=1):
    zstandard = pytest.importorskip("zstandard")
    size = -(-len(data) // frames)
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(b"".join(compress(data[i : i + size]) for i in range(0, len(data), size)))
    return path


@pytest.mark.parametrize("chunk", [1, 7, 4096, 1 << 20])
def test_json_lines_plain_and_compressed(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(module, "_ZST_CHUNK", chunk)
    expected = [row["text"] for row in ROWS]
    plain = makers.jsonl(tmp_path / "a.jsonl", ROWS)
    data = plain.read_bytes()
    assert texts(plain) == expected
    assert texts(zst(tmp_path / "b.jsonl.zst", data, frames=5)) == expected
    plain.write_bytes(data.rstrip(b"\n").replace(b"\n", b"\r\n\n"))
    assert texts(plain) == expected


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet", row_group_size=64)
    assert texts(tmp_path / "c.parquet") == [row["text"] for row in ROWS]
    with pytest.raises(ValueError, match="no column 'body'; it has text, other"):
        texts(tmp_path / "c.parquet", text="body")
    chat = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    parquet.write_table(pa.Table.from_pylist(chat), tmp_path / "d.parquet")
    source = Source(path="d.parquet", messages="messages")
    assert [d.messages for d in read(source, files_of(source, tmp_path))] == [tuple(chat[0]["messages"])]
    (tmp_path / "e.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"e\.parquet: damaged"):
        texts(tmp_path / "e.parquet")


def test_text_files_and_patterns(tmp_path):
    (tmp_path / "x").mkdir()
    for name, content in (("b.txt", "second"), ("a.md", "first"), ("x/c.txt", "third")):
        (tmp_path / name).write_text(content)
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe broken")
    assert texts(tmp_path / "*") == ["first", "second", None]
    assert texts(tmp_path / "**" / "*.txt") == ["second", None, "third"]


def test_rows_that_are_no_documents_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"text": "good"}',
        "not json",
        "[1]",
        '{"text": 3}',
        '{"body": "x"}',
        "[" * 100_000,
        '{"text": "\\ud800"}',
        "\xff",
    ]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    assert texts(path) == ["good", None, None, None, None, None, "\ud800", None]


def test_conversations_need_known_roles_and_an_answer(tmp_path):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "x"}]
    bad = [
        [], None, "text", [{"role": "user", "content": "q"}], [*good, {"role": "narrator", "content": "x"}],
        [*good, {"role": "user"}], [*good, 3], [*good, {"role": "user", "content": None}],
    ]  # fmt: skip
    path = makers.jsonl(tmp_path / "a.jsonl", [{"talk": m} for m in [good, *bad]])
    source = Source(path="a.jsonl", messages="talk")
    found = list(read(source, [path]))
    assert found[0] == Document(messages=({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))
    assert [row.why for row in found[1:] if isinstance(row, Malformed)] == [
        "has no list of turns under 'talk'", "has no list of turns under 'talk'", "has no list of turns under 'talk'",
        "has no answer to learn from", 'turn 3 has the role "narrator"', "turn 3 has no content", "turn 3 has the role 3",
        "turn 3 has no content",
    ]  # fmt: skip
    assert found[1].where == f"{path} line 2"
    assert found[0].contents() == "q\na"


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = zst(tmp_path / "a.jsonl.zst", data)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.jsonl\.zst: (the file was cut short|damaged)"):
            texts(path)
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:])
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst: "):
        texts(path)
    path.write_bytes(b"{}\n")
    with pytest.raises(ValueError, match="not a zstd file"):
        texts(path)
    path.write_bytes(b"")
    assert texts(path) == []


def test_a_bomb_does_not_fill_the_memory(tmp_path):
    """A gigabyte of zeros in 33 kB: refused as a line that is too long, within a bounded amount of memory."""
    zstandard = pytest.importorskip("zstandard")
    resource = pytest.importorskip("resource")
    path = tmp_path / "bomb.jsonl.zst"
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with path.open("wb") as file:
        for _ in range(256):
            file.write(compressor.compress(bytes(1 << 22)))
        file.write(compressor.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="longer than 64 MiB"):
        texts(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 450_000


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_of_an_array_are_named_by_their_line_or_number(tmp_path, indent):
    rows = [{"text": f"text {i}"} if i % 2 else {"body": "x", "id": i} for i in range(40)]
    path = tmp_path / "half.json"
    path.write_text(json.dumps(rows, indent=indent))
    source = Source(path=str(path), text="text")
    bad = [row for row in read(source, files_of(source, tmp_path)) if isinstance(row, Malformed)]
    # [, then 4 lines of a bad row and 3 of a good one
    places = [f"line {2 + 7 * i}" if indent else f"row {1 + 2 * i}" for i in range(20)]
    assert [row.where for row in bad] == [f"{path} {place}" for place in places]
    assert bad[0].why == "has no text under 'text'; it has body, id"
    assert {row.why for row in bad[1:]} == {"has no text under 'text'"}


def test_nothing_there(tmp_path):
    for pattern in ("none.jsonl", "*.jsonl", "x/**/*.parquet"):
        with pytest.raises(ValueError, match="no such file"):
            texts(tmp_path / pattern)
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown suffix"):
        texts(tmp_path / "a.pdf")


@pytest.mark.parametrize(("name", "package"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    for module_name in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module_name, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        texts(tmp_path / name)


def test_a_data_set_of_a_hub(tmp_path, monkeypatch):
    """The client is asked for the right files, and what it brings is read like any file."""
    hub = pytest.importorskip("huggingface_hub")
    makers.jsonl(tmp_path / "snapshot" / "data" / "train.jsonl", ROWS[:3])
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path / "snapshot"))
    source = Source(path="someone/things", format="huggingface", files="data/*.jsonl", revision="v1")
    assert [d.text for d in read(source, files_of(source, tmp_path))] == [row["text"] for row in ROWS[:3]]
    assert asked == [
        (("someone/things",), {"repo_type": "dataset", "revision": "v1", "allow_patterns": ["data/*.jsonl"]})
    ]

    def fails(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(ValueError, match="someone/things could not be fetched: no network"):
        files_of(source, tmp_path)


@pytest.mark.parametrize("kind", ["text", "arithmetic", "chat"])
def test_generated_documents(kind):
    def made(count, seed):
        return list(read(Source(format="generated", kind=kind, documents=count, seed=seed), []))

    assert made(50, 1) == made(80, 1)[:50]
    assert made(50, 1) != made(50, 2)
    assert len({d.contents() for d in made(300, 0)}) > 250
    if kind == "arithmetic":
        for line in "\n".join(d.text for d in made(50, 0)).splitlines():
            left, result = line.split(" = ")
            a, sign, b = left.split()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result) >= 0
