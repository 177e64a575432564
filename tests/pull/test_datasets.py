"""Files of data sets from a hub on the loopback interface: chosen by pattern, verified, kept."""

import hashlib
import json
from urllib.parse import quote

import pytest

from gangpao.progress import Silent
from gangpao.pull.datasets import fetch_dataset
from gangpao.pull.staging import PullError
from tests.pull.fakes import QUICK

FILES = {
    "README.md": b"# about",
    "all/test-00000-of-00001.parquet": b"PAR1 test",
    "all/dev-00000-of-00001.parquet": b"PAR1 dev",
    "law/test-00000-of-00001.parquet": b"PAR1 law",
}
TREE = "/api/datasets/o/set/tree/main?recursive=true"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def on_huggingface(hub, files=FILES, announced=digest):
    rows = [{"type": "directory", "path": "all"}]
    for path, data in files.items():
        rows.append(
            {"type": "file", "path": path, "size": len(data), "lfs": {"oid": announced(data), "size": len(data)}}
        )
        hub.files[f"/datasets/o/set/resolve/main/{quote(path)}"] = data
    hub.files[TREE] = json.dumps(rows).encode()


def on_modelscope(hub, files=FILES):
    rows = [{"Type": "tree", "Path": "all"}]
    for path, data in files.items():
        rows.append({"Type": "blob", "Path": path, "Size": len(data), "Sha256": digest(data)})
        hub.files[f"/api/v1/datasets/o/set/repo?Source=SDK&Revision=master&FilePath={quote(path, safe='')}"] = data
    for page in (1, 2):
        url = f"/api/v1/datasets/o/set/repo/tree?Revision=master&Root=%2F&Recursive=True&PageNumber={page}&PageSize=100"
        part = rows[100 * (page - 1) : 100 * page]
        hub.files[url] = json.dumps({"Code": 200, "Data": {"Files": part}}).encode()


def get(hub="huggingface", patterns=("all/test*",)):
    return fetch_dataset(hub, "o/set", patterns, progress=Silent(), limits=QUICK)


@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_the_files_of_a_pattern_come_and_stay(world, hub, name):
    on_huggingface(hub)
    on_modelscope(hub)
    assert [path.read_bytes() for path in get(name)] == [b"PAR1 test"]
    assert [path.read_bytes() for path in get(name, ["**/test*"])] == [b"PAR1 test", b"PAR1 law"]
    asked = len(hub.log)
    assert [path.read_bytes() for path in get(name)] == [b"PAR1 test"]
    assert len(hub.log) == asked  # without a network


def test_a_long_list_comes_in_pages(world, hub):
    on_modelscope(hub, {f"s{i:03}/test.jsonl": b"%d" % i for i in range(150)})
    assert [path.read_bytes() for path in get("modelscope", ["**/test*"])] == [b"%d" % i for i in range(150)]


def test_what_is_not_announced_is_not_kept(world, hub, tmp_path):
    on_huggingface(hub, announced=lambda data: digest(data + b"x"))
    with pytest.raises(PullError, match=r"o/set at huggingface: all/test.*not what the hub announces"):
        get()
    assert not list((tmp_path / "home" / "datasets").rglob("*.parquet"))


def test_no_such_file_names_what_there_is(world, hub):
    on_huggingface(hub)
    with pytest.raises(PullError, match=r"no file like val\*; it has README\.md, all/dev"):
        get(patterns=["val*"])
    with pytest.raises(PullError, match="HTTP 404"):
        fetch_dataset("huggingface", "o/none", ["*"], progress=Silent(), limits=QUICK)


def test_a_path_that_leads_out_is_no_file(world, hub):
    on_huggingface(hub, {"../../test.parquet": b"out", "a/../test.parquet": b"out"})
    with pytest.raises(PullError, match="no file like"):
        get(patterns=["**/test*"])
