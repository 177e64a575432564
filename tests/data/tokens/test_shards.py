"""Shards hold exactly what was written, and a folder that is not whole is not there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.atomic import locked, new_folder, write_json
from gangpao.data.tokens import shards as module
from gangpao.data.tokens.shards import Shards, ShardWriter
from tests.data import makers


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4"), (1 << 32, "<u4")]
)
def test_what_is_written_is_read(tmp_path, vocab_size, dtype, monkeypatch):
    monkeypatch.setattr(module, "BUFFER_TOKENS", 50)  # many flushes
    random = np.random.default_rng(0)
    documents = [random.integers(0, vocab_size, random.integers(1, 40)) for _ in range(60)]
    documents[7] = np.array([vocab_size - 1])
    found = makers.shards(tmp_path / "s", documents, vocab_size=vocab_size)
    assert found.tokens.dtype.str == dtype
    assert (found.num_documents, found.num_tokens) == (60, sum(map(len, documents)))
    assert found.num_bytes == 3 * found.num_tokens
    assert not found.supervised
    for i, document in enumerate(documents):
        assert found.document(i).tolist() == document.tolist()
    found.verify()
    for i in (-1, 60):
        with pytest.raises(IndexError):
            found.document(i)


@given(st.lists(st.lists(st.tuples(st.integers(0, 299), st.booleans()), min_size=1, max_size=9), max_size=12))
@settings(max_examples=25, deadline=None)
def test_masks_keep_their_tokens(tmp_path_factory, documents):
    ids, masks = ([[pair[k] for pair in d] for d in documents] for k in (0, 1))
    found = makers.shards(tmp_path_factory.mktemp("m") / "s", ids, vocab_size=300, masks=masks)
    assert found.supervised
    assert [found.document(i).tolist() for i in range(len(ids))] == ids
    assert [found.document_mask(i).astype(bool).tolist() for i in range(len(ids))] == masks


def test_the_fingerprint_is_of_the_content(tmp_path, monkeypatch):
    documents = [[1, 2, 3], [4, 5], [6]]
    prints = {"same": makers.shards(tmp_path / "a", documents).fingerprint}
    monkeypatch.setattr(module, "BUFFER_TOKENS", 1)
    assert makers.shards(tmp_path / "b", documents).fingerprint == prints["same"]
    prints["border"] = makers.shards(tmp_path / "c", [[1, 2], [3, 4, 5], [6]]).fingerprint
    prints["token"] = makers.shards(tmp_path / "d", [[1, 2, 3], [4, 5], [7]]).fingerprint
    prints["wide"] = makers.shards(tmp_path / "e", documents, vocab_size=1 << 20).fingerprint
    prints["mask"] = makers.shards(tmp_path / "f", documents, masks=[[1] * 3, [1] * 2, [1]]).fingerprint
    prints["mask 2"] = makers.shards(tmp_path / "g", documents, masks=[[1] * 3, [0] * 2, [1]]).fingerprint
    prints["none"] = makers.shards(tmp_path / "h", []).fingerprint
    assert len(set(prints.values())) == len(prints)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [([], None), ([50_000], None), ([-1], None), ([1.5], None), ([[1]], None), ([1, 2], [1, 1])],
    ids=["empty", "too large", "negative", "no integers", "two dimensions", "mask where none belongs"],
)
def test_wrong_documents_are_refused_and_leave_nothing(tmp_path, ids, mask):
    with pytest.raises(ValueError, match="s: "), ShardWriter(tmp_path / "s", 50_000) as writer:  # noqa: PT012
        writer.add([1], 1)
        writer.add(ids, 1, mask)
    assert list(tmp_path.iterdir()) == []


def test_every_damage_is_noticed(tmp_path):
    folder = tmp_path / "s"
    makers.shards(folder, [[1, 2, 3], [4, 5], [6] * 100], masks=[[1] * 3, [0] * 2, [1] * 100])
    clean = {path.name: path.read_bytes() for path in folder.iterdir()}
    random = np.random.default_rng(1)
    for name, data in clean.items():
        for cut in (b"", data[:-2], data + b"x"):
            (folder / name).write_bytes(cut)
            with pytest.raises(ValueError, match=str(folder)):
                Shards.open(folder).verify()
        for _ in range(30 if name != "meta.json" else 0):
            flipped = bytearray(data)
            flipped[random.integers(len(data))] ^= 1 << int(random.integers(8))
            (folder / name).write_bytes(flipped)
            with pytest.raises(ValueError, match=str(folder)):
                Shards.open(folder).verify()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=str(folder)):
            Shards.open(folder)
        (folder / name).write_bytes(data)
    meta = json.loads(clean["meta.json"])
    for key in sorted(meta.keys() - {"about"}):
        for bad in (None, -1, "x", 1 << 70, 70_000, [], True if key != "supervised" else 1):
            write_json(folder / "meta.json", meta | {key: bad})
            with pytest.raises(ValueError, match=str(folder)):
                Shards.open(folder).verify()
    write_json(folder / "meta.json", meta)
    Shards.open(folder).verify()


WRITE_FOREVER = """
import sys
from gangpao.data.tokens.shards import ShardWriter
for i in range(10**9):
    with ShardWriter(sys.argv[1], 1000) as writer:
        for n in range(40):
            writer.add([i % 1000] * (n + 1), 1)
    if not i:
        print("ready", flush=True)
"""


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path):
    """At any moment of a writer that replaces its folder again and again there is a whole one, or none for an instant."""
    random = np.random.default_rng(2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seen = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "s")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            child.stdout.readline()
            time.sleep(float(random.uniform(0, 0.05)))
            child.send_signal(signal.SIGKILL)
        if (tmp_path / "s").exists():
            seen += 1
            found = Shards.open(tmp_path / "s")
            found.verify()
            assert found.num_documents == 40
            assert len(set(found.tokens.tolist())) == 1
    assert seen
    makers.shards(tmp_path / "s", [[5]])
    assert [path.name for path in tmp_path.iterdir()] == ["s"], "a new writer clears away what killed ones left"


def test_a_folder_that_fails_is_not_there(tmp_path):
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a") as folder:  # noqa: PT012
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_two_builds_do_not_meet(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another gangpao"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_writing_needs_no_more_memory_than_its_buffer(tmp_path):
    """40 MB of tokens through a process that may not grow by 40 MB."""
    code = (
        "import resource, sys, numpy as np\n"
        "from gangpao.data.tokens.shards import ShardWriter, Shards\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ids = np.arange(1000) % 300\n"
        "with ShardWriter(sys.argv[1], 300) as writer:\n"
        "    for i in range(20000):\n"
        "        writer.add(ids, 1)\n"
        "        if i == 1000: before = peak()\n"
        "assert peak() - before < 8000, (before, peak())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, env=environment, timeout=60)
    digest = hashlib.sha256((tmp_path / "s" / "tokens.bin").read_bytes()).hexdigest()
    assert digest == hashlib.sha256(np.tile(np.arange(1000) % 300, 20000).astype("<u2").tobytes()).hexdigest()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("vocab_size", [60_000, 70_000])
def test_shards_in_memory_are_those_of_a_folder(tmp_path, masked, vocab_size):
    documents = [[1, 2, 3], [4], [5, 59_999]]
    masks = [[0, 1, 1], [0], [1, 1]] if masked else None
    folder = makers.shards(tmp_path / "s", documents, vocab_size=vocab_size, masks=masks)
    mask = np.concatenate(masks) if masked else None
    memory = Shards.in_memory(
        "s",
        np.concatenate(documents),
        np.array([0, 3, 4, 6]),
        mask,
        num_bytes=folder.num_bytes,
        vocab_size=vocab_size,
    )
    assert memory.fingerprint == folder.fingerprint
    assert [memory.document(i).tolist() for i in range(3)] == documents
    memory.verify()
