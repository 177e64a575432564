"""Files over HTTP: ranges, cuts, lies, stalls and redirects. Nothing leaves this machine."""

import hashlib
import json
import time

import pytest

from gangpao import catalog
from gangpao.pull import Limits, PullError, fetch
from gangpao.pull.staging import SourceError
from tests.pull.fakes import DATA, HF, MS, SEGMENT, SHA, Notes, get, visible

# --- over HTTP


def test_a_file_comes_in_ranges_and_is_recorded(world, hub):
    path = get()
    assert path == catalog.path_of("tiny")
    assert path.read_bytes() == DATA
    assert len(hub.ranged()) == 11
    assert all(headers.get("If-Range") == '"1"' for _, _, headers in hub.log[1:])
    record = catalog.read_record("tiny")
    assert (record["sha256"], record["bytes"], record["source"]["repo"]) == (SHA, len(DATA), "o/hf")
    assert catalog.resolve("tiny") == path
    hub.log.clear()
    assert get() == path
    assert hub.log == []
    assert not catalog.staging_of("tiny").exists()


def test_cut_connections_are_taken_up_inside_a_segment(world, hub):
    cuts = iter([40_000] * 6)
    hub.rule = lambda r: {"cut": next(cuts, SEGMENT)} if r.headers.get("Range") != "bytes=0-0" else None
    assert get().read_bytes() == DATA
    assert hub.sent < len(DATA) * 1.05
    assert 11 < len(hub.ranged()) <= 11 + 6


def test_a_second_pull_fetches_only_what_is_missing(world, hub):
    store = world()
    seen = []

    def fail_after_five(request):
        asked = request.headers.get("Range")
        if asked != "bytes=0-0":
            seen.append(asked)
        return {"status": 404} if len(seen) > 5 else None

    hub.rule = fail_after_five
    with pytest.raises(PullError, match=r"tiny: could not be had\. Tried: 1\) huggingface \(o/hf\): .*404.*Next step"):
        get(jobs=1)
    assert visible(store) == []
    assert catalog.installed() == {}
    hub.rule, hub.sent = lambda r: None, 0
    assert get().read_bytes() == DATA
    assert hub.sent == len(DATA) - 5 * SEGMENT + 1  # and the probe


@pytest.mark.parametrize("what", ["flipped", "short", "long"])
def test_a_wrong_file_is_refused(world, hub, what):
    store = world()
    wrong = {"flipped": DATA[:-1] + b"!", "short": DATA[:-1], "long": DATA + b"!"}[what]
    hub.files["/o/hf/resolve/main/t.gguf"] = wrong
    with pytest.raises(PullError, match="not the file it should be" if what == "flipped" else "expected: another file"):
        get()
    assert visible(store) == []
    assert not [p for p in store.rglob("*") if p.is_file() and p.stat().st_size > 2000]


def test_a_file_that_changed_since_is_fetched_anew(world, hub):
    """Without a hash in the catalog the ETag is what tells."""
    world(sha256="", bytes=0)
    path = "/o/hf/resolve/main/t.gguf"
    other = bytes(reversed(DATA))
    hub.headers[path] = {"X-Linked-Etag": f'"{SHA}"'}
    left = iter(range(4))
    hub.rule = lambda r: None if r.headers.get("Range") in (None, "bytes=0-0") or next(left, None) else {"status": 404}
    with pytest.raises(PullError):
        get(jobs=1)
    hub.rule, hub.files[path], hub.etags[path] = lambda r: None, other, '"2"'
    hub.headers[path] = {"X-Linked-Etag": f'"{hashlib.sha256(other).hexdigest()}"'}
    assert get().read_bytes() == other


def test_a_file_that_changes_during_the_pull_is_fetched_anew(world, hub):
    other = DATA[::-1]
    world(sha256=hashlib.sha256(other).hexdigest())
    path = "/o/hf/resolve/main/t.gguf"

    def change(request):
        if len(hub.ranged()) == 4:
            hub.files[path], hub.etags[path] = other, '"2"'

    hub.rule = change
    assert get(jobs=2).read_bytes() == other


def test_a_file_that_keeps_changing_is_given_up(world, hub):
    count = iter(range(10**6))
    hub.rule = lambda r: hub.etags.update({"/o/hf/resolve/main/t.gguf": f'"{next(count)}"'})
    with pytest.raises(PullError, match="changes on the server"):
        get()


def test_the_next_source_is_tried_and_goes_on_with_the_bytes(world, hub):
    """Same sha256, another address: what the first source gave is kept."""
    world((HF, MS))
    hub.files["/models/o/ms/resolve/master/t.gguf"] = DATA
    good = iter(range(4))
    hub.rule = lambda r: (
        {"status": 404}
        if "/o/hf/" in r.path and r.headers["Range"] != "bytes=0-0" and next(good, None) is None
        else None
    )
    notes = Notes()
    assert get(jobs=1, progress=notes).read_bytes() == DATA
    assert hub.sent == len(DATA) + 2
    assert catalog.read_record("tiny")["source"]["kind"] == "modelscope"
    assert "404" in notes.notes[0]
    assert "next source: modelscope (o/ms)" in notes.notes[0]


def test_all_sources_failed_says_so_in_order(world, hub):
    world((MS, HF))
    hub.files.clear()
    with pytest.raises(PullError, match=r"1\) modelscope \(o/ms\): .*2\) huggingface \(o/hf\): .*--from FILE"):
        get()


def test_sources_can_be_chosen(world, hub, monkeypatch):
    world((HF, MS))
    hub.files["/models/o/ms/resolve/master/t.gguf"] = DATA
    monkeypatch.setenv("GANGPAO_SOURCES", "modelscope, huggingface")
    get()
    assert all("/o/ms/" in path for _, path, _ in hub.log)
    catalog.remove("tiny")
    get(sources=["huggingface"])
    assert catalog.read_record("tiny")["source"]["kind"] == "huggingface"
    with pytest.raises(PullError, match="no source of kind pypi; it has huggingface, modelscope"):
        get(sources=["pypi"])


@pytest.mark.parametrize("action", [{"cut": 100, "stall": 1.0}, {"step": 50, "pause": 0.05}], ids=["stalls", "drips"])
def test_a_server_that_stalls_is_left(world, hub, action):
    hub.rule = lambda r: action if r.headers.get("Range") != "bytes=0-0" else None
    limits = Limits(read_s=0.3, window_s=0.3, attempts=2, backoff_s=0.01, segment=1 << 20)
    start = time.monotonic()
    with pytest.raises(PullError, match=r"does not answer|all but stopped"):
        get(limits=limits)
    assert time.monotonic() - start < 10


def test_busy_servers_are_asked_again(world, hub):
    busy = iter([503, 429, 500, 503])
    hub.rule = lambda r: {"status": s} if len(hub.log) % 3 == 1 and (s := next(busy, None)) else None
    assert get(jobs=1).read_bytes() == DATA


def test_a_server_without_ranges_gives_one_stream(world, hub):
    hub.ranges = False
    cuts = iter([3 * SEGMENT])
    hub.rule = lambda r: {"cut": cut} if len(hub.log) > 1 and (cut := next(cuts, None)) else None
    assert get().read_bytes() == DATA


def test_refused_without_a_token(world, hub, monkeypatch):
    hub.rule = lambda r: None if r.headers.get("Authorization") == "Bearer secret" else {"status": 401}
    with pytest.raises(PullError, match="set HF_TOKEN"):
        get()
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert get().read_bytes() == DATA


def test_the_token_does_not_follow_a_redirect_to_another_host(world, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    other = hub.url.replace("127.0.0.1", "localhost")
    hub.redirects["/o/hf/resolve/main/t.gguf"] = f"{other}/elsewhere"
    hub.files["/elsewhere"] = DATA
    assert get().read_bytes() == DATA
    assert {headers.get("Authorization") for _, path, headers in hub.log if path == "/elsewhere"} == {None}
    assert {headers.get("Authorization") for _, path, headers in hub.log if path != "/elsewhere"} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("target", "origin", "good"),
    [
        ("https://a.example/x", None, True), ("https://b.example/x", "https://a.example", True),
        ("http://a.example/x", None, False), ("http://a.example/x", "https://a.example/x", False),
        ("http://127.0.0.1:1/x", "https://a.example/x", False), ("http://127.0.0.1:1/x", None, True),
        ("http://localhost/x", "http://[::1]:5/x", True), ("file:///etc/passwd", "https://a.example", False),
        ("ftp://a.example/x", None, False), ("https:///x", None, False), ("http://127.0.0.1.a.example/", None, False),
        ("http://10.0.0.1/", None, False), ("javascript:x", "https://a.example", False),
    ],
)  # fmt: skip
def test_only_https_and_the_loopback(target, origin, good):
    if good:
        assert fetch.check_hop(target, origin) == target
    else:
        with pytest.raises(SourceError, match="not https"):
            fetch.check_hop(target, origin)


def test_a_redirect_to_http_elsewhere_is_refused(world, hub):
    hub.redirects["/o/hf/resolve/main/t.gguf"] = "http://mirror.example/t.gguf"
    with pytest.raises(PullError, match=r"redirects to 'http://mirror\.example/t\.gguf', which is not https"):
        get()
    hub.redirects["/o/hf/resolve/main/t.gguf"] = "/o/hf/resolve/main/t.gguf"
    with pytest.raises(PullError, match="more than 8 redirects"):
        get()


def test_kept_bytes_that_are_damaged_are_noticed(world, hub):
    """The state says that a segment is there, the disk says otherwise: the hash decides, and it is fetched anew."""
    good = iter(range(4))
    hub.rule = lambda r: {"status": 404} if r.headers["Range"] != "bytes=0-0" and next(good, None) is None else None
    with pytest.raises(PullError):
        get(jobs=1)
    part = catalog.staging_of("tiny") / "ranges" / "tiny.gguf"
    with part.open("r+b") as file:
        file.write(b"\0" * 100)
    hub.rule, notes = lambda r: None, Notes()
    assert get(progress=notes).read_bytes() == DATA
    assert "damaged" in notes.notes[0]


@pytest.mark.parametrize("done", [5, ["x"], [None, 1.5], [-1], [10**9], None])
def test_a_damaged_state_starts_over(world, hub, done):
    """The state is about this very file, but what it says is done cannot be."""
    folder = catalog.staging_of("tiny") / "ranges"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(b"junk")
    state = {"key": SHA, "url": f"{hub.url}/o/hf/resolve/main/t.gguf", "etag": '"1"', "size": len(DATA)}
    state |= {"segment": SEGMENT, "done": done}
    (catalog.staging_of("tiny") / "ranges-tiny.gguf.json").write_text(json.dumps(state))
    assert get().read_bytes() == DATA


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": 5}', "[" * 100_000])
def test_an_unreadable_state_starts_over(world, text):
    folder = catalog.staging_of("tiny") / "ranges"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(b"junk")
    (catalog.staging_of("tiny") / "ranges-tiny.gguf.json").write_text(text)
    assert get().read_bytes() == DATA
