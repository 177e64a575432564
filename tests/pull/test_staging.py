"""Kills, signals, two pulls at once, full disks, local files, and what is shown."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from gangpao import catalog
from gangpao.progress import Progress
from gangpao.pull import PullError, fetch, staging
from gangpao.units import show_seconds
from tests import seams
from tests.child import environment
from tests.pull.fakes import DATA, SEGMENT, SHA, Notes, get, visible

ROOT = Path(__file__).resolve().parent.parent.parent


# --- kills, signals, locks, disks

CHILD = """
import sys
from gangpao.progress import Progress
from gangpao.pull import Limits, pull
pull("tiny", jobs=2, progress=Progress(), limits=Limits(segment=65536, backoff_s=0.01))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_pull_that_is_killed_goes_on_later(world, hub, number):
    store = world()
    hub.rule = lambda r: {"step": 4096, "pause": 0.01} if r.headers.get("Range") != "bytes=0-0" else None
    child = subprocess.Popen([sys.executable, "-c", CHILD], env=environment(), stderr=subprocess.PIPE, text=True)
    state = catalog.staging_of("tiny") / "ranges-tiny.gguf.json"
    deadline = time.monotonic() + 20
    while len(staging.load_state(state).get("done", [])) < 3:
        assert time.monotonic() < deadline
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    child.send_signal(number)
    said = child.communicate(timeout=10)[1]
    assert child.returncode != 0
    if number == signal.SIGINT:
        assert "stopped; what came is kept, and `gangpao pull tiny` goes on from there" in said
    assert visible(store) == []
    done = len(staging.load_state(state)["done"])
    time.sleep(0.1)  # what the server still sends to the dead child
    hub.rule, hub.sent = lambda r: None, 0
    assert get().read_bytes() == DATA
    assert hub.sent <= len(DATA) - (done - 1) * SEGMENT


def test_two_pulls_at_once_fetch_once(world, hub):
    world()
    hub.rule = lambda r: {"step": 1 << 13, "pause": 0.002} if r.headers.get("Range") != "bytes=0-0" else None
    results, notes = [], [Notes(), Notes(), Notes()]
    threads = [threading.Thread(target=lambda n=n: results.append(get(progress=n))) for n in notes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == DATA for path in results] == [True] * 3
    assert hub.sent == len(DATA) + 1
    waited = [n.notes for n in notes if n.notes]
    assert waited == [["tiny: another gangpao is pulling it; waiting"]] * 2


def test_too_little_disk_says_need_have_and_ways_out(world, hub, monkeypatch):
    store = world()
    other = store / "smollm2-135m"
    other.mkdir(parents=True)
    (other / "smollm2-135m.gguf").write_bytes(b"x" * 2000)
    seams.replace(monkeypatch, staging, "shutil", disk_usage=lambda p: types.SimpleNamespace(free=12_000_000))
    with pytest.raises(
        PullError, match=r"64\.7 MB more are needed and 12 MB are free.*gangpao rm.*smollm2-135m.*GANGPAO_HOME"
    ):
        get()
    assert hub.sent <= 1


def test_a_disk_that_fills_up_keeps_what_came(world, hub, monkeypatch):
    store = world()
    real, written = os.pwrite, []

    def full(descriptor, data, at):
        if sum(written) > 4 * SEGMENT:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(data))
        return real(descriptor, data, at)

    seams.replace(monkeypatch, fetch, "os", pwrite=full)
    with pytest.raises(PullError, match=r"not enough disk in .*are free\. Ways out: .*What was downloaded is kept"):
        get(jobs=1)
    assert visible(store) == []
    seams.replace(monkeypatch, fetch, "os", pwrite=real)
    hub.sent = 0
    assert get().read_bytes() == DATA
    assert hub.sent <= len(DATA) - 4 * SEGMENT + 1


# --- local files


def test_from_a_file(world, tmp_path):
    mine = tmp_path / "mine.bin"
    mine.write_bytes(DATA)
    path = get(from_path=mine)
    assert path.read_bytes() == DATA
    assert path.stat().st_ino == mine.stat().st_ino
    assert catalog.read_record("tiny")["source"]["path"] == str(mine)


def test_from_a_file_on_another_disk(world, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    mine = tmp_path / "mine.bin"
    mine.write_bytes(DATA)
    assert get(from_path=mine).stat().st_ino != mine.stat().st_ino


def test_from_a_wrong_file(world, tmp_path):
    store = world()
    mine = tmp_path / "mine.bin"
    for content, message in ((DATA[:-1] + b"?", "sha256"), (b"small", "another file")):
        mine.write_bytes(content)
        with pytest.raises(PullError, match=message):
            get(from_path=mine)
        assert mine.read_bytes() == content
        assert visible(store) == []
    with pytest.raises(PullError, match="cannot be read: No such file"):
        get(from_path=tmp_path / "missing")
    with pytest.raises(PullError, match="not a file"):
        get(from_path=tmp_path)


def test_a_file_put_there_by_hand_is_checked_once(world, hub):
    folder = world() / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(DATA)
    assert get() == folder / "tiny.gguf"
    assert hub.log == []
    assert catalog.read_record("tiny")["sha256"] == SHA
    (folder / "tiny.gguf").write_bytes(DATA[::-1])
    (folder / catalog.RECORD).unlink()
    notes = Notes()
    assert get(progress=notes).read_bytes() == DATA
    assert "will be replaced" in notes.notes[0]


# --- what is shown


def test_progress_is_lines_in_a_file_and_a_bar_on_a_terminal(world, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = io.StringIO()
    with Progress(out, line_seconds=0) as progress:
        progress.start("tiny", 2_000_000, 500_000)
        progress.update(1_000_000)
        progress.note("a note")
    assert "tiny: 1 MB of 2 MB (50 %), " in out.getvalue()
    assert "/s, " in out.getvalue()
    assert "a note\n" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    terminal = Terminal()
    with Progress(terminal) as progress:
        get(progress=progress)
    assert "tiny" in terminal.getvalue()
    assert [show_seconds(s) for s in (5, 65, 7300)] == ["5 s", "1:05 min", "2:01 h"]
