"""The line with stages that take no time: what is skipped, what is done again, what is put aside and taken back, what is kept."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gangpao.forge import child, line, status
from gangpao.forge.config import load_forge_config
from gangpao.forge.stages import table
from gangpao.forge.stages.stage import Command, Made, Stage

TOML = """
[data]
config = "a.toml"
[train]
config = { lr = 0.1 }
[tune.sft]
config = { rows = 1 }
[export]
"""


class Ran(list):
    """Names of stages that ran; those in `fails` fail."""

    fails = ()


@pytest.fixture
def ran(monkeypatch):
    """Stages that write what they are told and note that they ran; `fails` makes one of them fail."""
    ran = Ran()

    def depends(context, stage):
        return [stage.model_dump(mode="json"), {kind: one.digest for kind, one in context.here.items()}]

    def run(context, stage):
        if False:
            yield Command(())
        ran.append(context.name)
        if context.name in ran.fails:
            raise ValueError("the disk is full")
        context.folder.mkdir(parents=True, exist_ok=True)
        told = context.folder / "told.txt"
        before = "".join(sorted(one.digest for one in context.here.values()))
        config = getattr(stage, "config", None)
        told.write_text(f"{context.name} {json.dumps(config)} {before}", encoding="utf-8")
        kind = {"data": "data", "export": "file"}.get(context.name, "model")
        return Made({kind: context.product(told)}, {"loss": 1.0})

    for name in ("data", "train", "tune", "export"):
        monkeypatch.setitem(table.STAGES, name, Stage(depends, run))
    return ran


@pytest.fixture
def forged(tmp_path, ran):
    (tmp_path / "line.toml").write_text(TOML, encoding="utf-8")

    def forge(*overrides, **options):
        ran.clear()
        config = load_forge_config(tmp_path / "line.toml", overrides)
        line.forge(config, None, tmp_path / "run", **options)
        return list(ran)

    return forge


ALL = ["data", "train", "tune-sft", "export"]


def test_what_is_done_is_not_done_again(forged):
    assert forged() == ALL
    assert forged() == []


def test_a_change_does_what_depends_on_it(forged):
    forged()
    assert forged("tune.sft.config.rows=2") == ["tune-sft", "export"]
    assert forged("tune.sft.config.rows=2") == []


def test_a_change_that_is_taken_back_costs_nothing(forged, tmp_path):
    forged()
    first = (tmp_path / "run" / "export" / "told.txt").read_text(encoding="utf-8")
    forged("tune.sft.config.rows=2")
    assert (tmp_path / "run" / "export" / "told.txt").read_text(encoding="utf-8") != first
    assert forged() == []
    assert (tmp_path / "run" / "export" / "told.txt").read_text(encoding="utf-8") == first


def test_a_stage_that_made_the_same_again_changes_nothing_behind_it(forged, ran, monkeypatch):
    forged()
    assert forged(again_from="export") == ["export"]
    data = table.STAGES["data"]
    monkeypatch.setitem(table.STAGES, "data", Stage(data.depends, data.run, always=True))
    assert forged() == ["data"]


def test_a_folder_that_was_moved_is_gone_on_with(forged, ran, tmp_path):
    """Whatever was put aside comes along; a copy does not look into the folder that it was made from."""
    forged()
    forged("tune.sft.config.rows=2")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    shutil.rmtree(tmp_path / "moved" / "export")
    for folder, again in (("copied", []), ("moved", ["export"])):
        for overrides in (["tune.sft.config.rows=2"], []):
            ran.clear()
            line.forge(load_forge_config(tmp_path / "line.toml", overrides), None, tmp_path / folder)
            assert list(ran) == (again if overrides else []), folder


def test_until_and_from(forged):
    assert forged(until="train") == ["data", "train"]
    assert forged() == ["tune-sft", "export"]
    assert forged(again_from="tune-sft") == ["tune-sft", "export"]
    with pytest.raises(ValueError, match="no stage of this line; it has data, train, tune-sft, export"):
        forged(until="tune")


def test_a_product_that_was_changed_by_hand_is_made_again(forged, tmp_path):
    forged()
    (tmp_path / "run" / "tune-sft" / "told.txt").write_text("mine", encoding="utf-8")
    assert forged() == ["tune-sft"]
    assert (tmp_path / "run" / "tune-sft" / "told.txt.changed").read_text(encoding="utf-8") == "mine"


def test_a_stage_that_fails_is_told_and_the_next_call_goes_on(forged, ran, tmp_path):
    ran.fails = ("tune-sft",)
    with pytest.raises(ValueError, match="the disk is full"):
        forged()
    states = [one.state for one in status.standings(tmp_path / "run")[1]]
    assert states == ["done", "done", "stopped", "waiting"]
    ran.fails = ()
    assert forged() == ["tune-sft", "export"]


def test_what_was_put_aside_for_a_failed_try_is_still_there(forged, ran):
    forged()
    ran.fails = ("tune-sft",)
    with pytest.raises(ValueError, match="the disk is full"):
        forged("tune.sft.config.rows=2")
    ran.fails = ()
    assert forged() == []


def test_a_stopped_call_with_from_goes_on_and_loses_nothing(forged, ran, tmp_path):
    forged()
    ran.fails = ("tune-sft",)
    with pytest.raises(ValueError, match="the disk is full"):
        forged(again_from="train")
    assert list(ran) == ["train", "tune-sft"]
    (kept,) = (tmp_path / "run" / "old").glob("train-*")
    ran.fails = ()
    assert forged(again_from="train") == ["tune-sft", "export"]  # train was begun anew by the call before
    assert kept.is_dir()
    assert forged(again_from="train") == ["train", "tune-sft", "export"]
    ran.fails = ("train",)
    with pytest.raises(ValueError, match="the disk is full"):
        forged(again_from="train")
    assert json.loads((kept / "state.json").read_text(encoding="utf-8"))[
        "done"
    ]  # not replaced by a stage that is not done
    ran.fails = ()
    assert forged(again_from="data") == ALL


def test_what_killed_calls_took_is_counted_to_their_last_second(forged, tmp_path):
    forged()
    path, log = (tmp_path / "run" / place for place in ("state/train.json", "log/train.log"))
    told = json.loads(path.read_text(encoding="utf-8"))
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    path.write_text(json.dumps(told | {"done": False, "seconds": 10.0, "since": begun.isoformat()}), encoding="utf-8")
    log.parent.mkdir()
    log.write_text("step 7\n", encoding="utf-8")
    os.utime(log, (begun.timestamp() + 90,) * 2)
    train = next(one for one in status.standings(tmp_path / "run")[1] if one.name == "train")
    assert (train.state, train.seconds) == ("stopped", 100.0)
    assert forged() == ["train"]
    assert 100.0 <= json.loads(path.read_text(encoding="utf-8"))["seconds"] < 160.0


def test_who_looks_does_not_keep_a_call_out(forged, tmp_path):
    from gangpao.atomic import locked

    forged()
    holding = threading.Event()

    def look():
        with locked(tmp_path / "run"):
            holding.set()
            time.sleep(0.1)

    looker = threading.Thread(target=look)
    looker.start()
    holding.wait()
    assert forged() == []
    looker.join()


def test_two_calls_in_one_folder(forged, tmp_path):
    from gangpao.atomic import locked

    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another `gangpao forge` works here"):
        forged()


def test_a_file_in_the_way(forged, tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="a file is in the way"):
        forged()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_command_is_heard_to_its_end_where_its_log_has_no_room(tmp_path):
    """More than a pipe holds: a command that nobody hears would wait forever."""
    code = "import sys; print('word ' * 100_000, file=sys.stderr); print('the end', file=sys.stderr); print('answer')"
    command, screen = Command(("-c", code), launch=(sys.executable,)), io.StringIO()
    words = [*command.launch, *command.words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "command_words", lambda _: words)
        assert child.run(command, tmp_path, Path("/dev/full"), screen) == "answer\n"
    assert screen.getvalue().startswith("note: /dev/full: No space left on device")
    assert screen.getvalue().endswith("the end\n")


def test_the_log_of_a_silent_command_tells_how_long_it_lived(tmp_path, monkeypatch):
    words, log = [sys.executable, "-c", "import time; time.sleep(1.5)"], tmp_path / "log"
    monkeypatch.setattr(child, "command_words", lambda _: words)
    begun = time.time()
    child.run(Command(("train",)), tmp_path, log, None)
    assert log.stat().st_mtime - begun >= 0.9


def test_a_command_that_was_killed_is_told_by_its_signal(tmp_path, monkeypatch):
    words = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(child, "command_words", lambda _: words)
    with pytest.raises(child.Failed, match="was killed by signal 9"):
        child.run(Command(("train",)), tmp_path, tmp_path / "log", None)


def test_a_command_says_its_answer_and_a_failing_one_its_last_words(tmp_path):
    log = tmp_path / "log" / "a.log"
    assert "gangpao" in child.run(Command(("--version",)), tmp_path, log, None)
    with pytest.raises(child.Failed, match="No such command 'nonsense'"):
        child.run(Command(("nonsense",)), tmp_path, log, None)
    assert log.read_text(encoding="utf-8").startswith("$ gangpao --version\n")
    assert not (tmp_path / child.PROCESS).exists()


_PARENT = """
import sys
from pathlib import Path
from gangpao.forge import child
from gangpao.forge.stages.stage import Command
child.run(Command(("-c", "import time; print('up', file=__import__('sys').stderr, flush=True); time.sleep(60)"),
          launch=(sys.executable,)), Path(sys.argv[1]), Path(sys.argv[1]) / "log", sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_the_command_ends_with_the_line_and_the_next_call_waits_for_it(tmp_path):
    code = "from gangpao.forge import child\nchild.command_words = lambda c: [*c.launch, *c.words]\n" + _PARENT
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "up\n"
    pid = int((tmp_path / child.PROCESS).read_text(encoding="utf-8").split()[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    child.wait_for_earlier(tmp_path, None)
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.05)
    assert child._begun(pid) == ""
