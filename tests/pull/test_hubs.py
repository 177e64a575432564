"""What hubs announce, and checkpoints as folders."""

import hashlib
import json

import pytest

from gangpao import catalog
from gangpao.pull import PullError
from tests.pull.fakes import DATA, MS, SHA, get, visible

# --- hashes that the hub announces, checkpoints


def test_the_hash_that_the_hub_announces_is_used_and_recorded(world, hub):
    world(sha256="", bytes=0)
    path = "/o/hf/resolve/main/t.gguf"
    hub.headers[path] = {"X-Linked-Etag": f'"{SHA}"', "X-Linked-Size": str(len(DATA)), "X-Repo-Commit": "abc123"}
    hub.redirects[path] = f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn"
    hub.files["/o/hf/resolve/abc123/t.gguf"] = DATA
    assert get().read_bytes() == DATA
    assert catalog.read_record("tiny")["sha256"] == SHA
    assert any(path.endswith("/abc123/t.gguf") for _, path, _ in hub.log)


def test_the_tree_announces_it_too(world, hub):
    world(sha256="", bytes=0)
    tree = [
        {"type": "file", "path": "t.gguf", "size": len(DATA), "oid": "0" * 40, "lfs": {"oid": SHA, "size": len(DATA)}}
    ]
    hub.files["/api/models/o/hf/tree/main"] = json.dumps(tree).encode()
    assert get().read_bytes() == DATA
    hub.files["/o/hf/resolve/main/t.gguf"] = DATA[::-1]
    catalog.remove("tiny")
    with pytest.raises(PullError, match="not the file it should be"):
        get()


def test_without_any_hash_it_is_refused_unless_wanted(world, hub):
    store = world(sha256="", bytes=0)
    hub.files["/api/models/o/hf/tree/main"] = b'[{"type": "file", "path": "t.gguf", "size": 5}]'.replace(
        b"5", str(len(DATA)).encode()
    )
    with pytest.raises(PullError, match=r"neither the catalog nor the source knows a sha256.*--unverified"):
        get()
    assert visible(store) == []
    assert get(unverified=True).read_bytes() == DATA
    assert catalog.read_record("tiny")["sha256"] == SHA


def test_modelscope_announces_it_in_its_list(world, hub):
    world((MS,), sha256="", bytes=0)
    rows = [{"Path": "t.gguf", "Type": "blob", "Size": len(DATA), "Sha256": SHA.upper()}]
    hub.files["/api/v1/models/o/ms/repo/files?Revision=master&Recursive=false"] = json.dumps(
        {"Data": {"Files": rows}}
    ).encode()
    hub.files["/models/o/ms/resolve/master/t.gguf"] = DATA
    assert get().read_bytes() == DATA


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"[" * 100_000, b'{"Data": {"Files": 3}}'])
def test_nonsense_from_a_hub_is_an_error_of_the_source(world, hub, body):
    world((MS,), sha256="", bytes=0)
    hub.files["/api/v1/models/o/ms/repo/files?Revision=master&Recursive=false"] = body
    with pytest.raises(PullError, match="not the list of files"):
        get()


def checkpoint(hub, files, lfs=()):
    rows = []
    for name, body in files.items():
        oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        row = {"type": "file", "path": name, "size": len(body), "oid": oid}
        if name in lfs:
            row["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
        rows.append(row)
        hub.files[f"/o/ck/resolve/main/{name}"] = body
    hub.files["/api/models/o/ck/tree/main"] = json.dumps(rows).encode()


CK = '{ kind = "huggingface", repo = "o/ck" }'
FOLDER = {"format": "safetensors", "file": None, "bytes": None, "sha256": None}


def test_a_checkpoint_is_its_data_and_nothing_else(world, hub):
    store = world((CK,), **FOLDER)
    files = {
        "config.json": b"{}", "model.safetensors": DATA, "tokenizer.json": b"{ }", "tokenizer.model": b"sp",
        "modeling_minicpm.py": b"import os", "pytorch_model.bin": b"pickle", "README.md": b"#", ".gitattributes": b"x",
        "..json": b"x", "x/../../y.json": b"x",
    }  # fmt: skip
    checkpoint(hub, files, lfs=["model.safetensors"])
    path = get()
    assert path == store / "tiny"
    names = {p.name for p in path.iterdir()} - {catalog.RECORD}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"}
    assert (path / "model.safetensors").read_bytes() == DATA
    hub.log.clear()
    assert get() == path
    assert hub.log == []
    assert catalog.installed() == {"tiny": path}
    (path / "config.json").unlink()
    assert (get() / "config.json").exists()  # a checkpoint with a hole is pulled again


def test_a_small_file_of_a_checkpoint_is_checked_too(world, hub):
    store = world((CK,), **FOLDER)
    checkpoint(hub, {"config.json": b"{}", "model.safetensors": DATA}, lfs=["model.safetensors"])
    hub.files["/o/ck/resolve/main/config.json"] = b"[]"
    with pytest.raises(PullError, match="git hash"):
        get()
    assert visible(store) == []


def test_pickled_weights_are_never_taken(world, hub):
    world((CK,), **FOLDER)
    checkpoint(hub, {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(PullError, match="holds no safetensors"):
        get()
