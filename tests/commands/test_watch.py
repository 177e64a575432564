"""gangpao watch: frames -> what changed -> sentences -> a log that answers questions; the server records what it is asked."""

import base64
import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gangpao import cli
from gangpao.commands.watch.live import Newest
from gangpao.commands.watch.log import MAX_TEXT, Entry, Log, clock, one_line
from gangpao.images.video import Changes, Frame
from tests.commands.fake_server import answer, fake
from tests.engine.tiny import write_tiny

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (255, 255, 255)}


def folder(path, names):
    """Pictures of one colour each."""
    path.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (60, 40), COLOURS[name]).save(path / f"{index:03}.png")
    return path


def picture_of(body):
    """The picture in the last message of a request, or None."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return None
    ((image, text),) = [content]
    assert (image["type"], text["type"]) == ("image_url", "text")
    return Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))))


def seeing(asked):
    """A server that sees one colour: it names that of the picture, or counts the lines of the log that it is given."""
    picture = picture_of(asked.body)
    if picture is None:
        text = f"{asked.body['messages'][0]['content'].count('[0')} lines"
    else:
        mean = np.asarray(picture).reshape(-1, 3).mean(0)
        text = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
    return answer(200, {"choices": [{"message": {"role": "assistant", "content": f"It is\n{text}.\x1b[2J"}}]})


class Terminal(io.StringIO):
    """What somebody sits at; what is typed comes from `input`."""

    def isatty(self):
        return True


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; gives (exit code, stdout, stderr)."""

    def go(*words, typed="", terminal=False):
        monkeypatch.setattr("sys.stdin", Terminal() if terminal else io.StringIO(typed))
        code = cli.main(["watch", *map(str, words)])
        return code, *capsys.readouterr()

    return go


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_changed_is_described_and_kept(run, tmp_path):
    pictures, log = folder(tmp_path / "p", ["red", "red", "green", "green", "blue"]), tmp_path / "log.jsonl"
    with fake(seeing) as server:
        code, out, _ = run(pictures, "--connect", server.url, "--log", log, "--every", 2, typed="What came before?\n")
    assert code == 0
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "[00:00] It is red.[2J",
        "[00:04] It is green.[2J",
        "[00:08] It is blue.[2J",
    ]
    assert all(line.endswith("s behind") for line in lines[:3])
    assert lines[3:] == ["It is 3 lines.[2J"]
    assert [(row["seconds"], row.get("asked"), row["text"]) for row in rows(log)] == [
        (0, None, "It is red.[2J"), (4, None, "It is green.[2J"), (8, None, "It is blue.[2J"),
        (8, "What came before?", "It is 3 lines.[2J"),
    ]  # fmt: skip
    assert all(0 <= row["behind"] < 20 and row["source"] == str(pictures) for row in rows(log)[:3])
    described, *_, question = (asked.body for asked in server.chats())
    assert (described["model"], described["temperature"], described["max_tokens"]) == ("one", 0, 64)
    assert "[00:04] It is green." in question["messages"][0]["content"]
    assert len(server.chats()) == 4  # two frames showed nothing new


def test_a_run_goes_on_where_it_was(run, tmp_path):
    pictures, log = folder(tmp_path / "p", ["red", "green"]), tmp_path / "log.jsonl"
    with fake(seeing) as server:
        run(pictures, "--connect", server.url, "--log", log)
        log.write_bytes(log.read_bytes() + b'{"seconds": 5, "te')  # it was killed while it wrote
        folder(pictures, ["red", "green", "blue"])
        _, out, _ = run(pictures, "--connect", server.url, "--log", log, typed="and?")
        assert out.count("behind") == 1
        assert "3 lines" in out
        other = folder(tmp_path / "q", ["white"])
        _, out, _ = run(other, "--connect", server.url, "--log", log, typed="and?")
        assert "1 lines" in out  # another source has its own
    assert [row["seconds"] for row in rows(log) if "asked" not in row] == [0, 1, 2, 0]


def test_questions_about_now_go_with_the_newest_frame(run, tmp_path):
    pictures = folder(tmp_path / "p", ["red", "green", "green"])
    with fake(seeing) as server:
        _, out, err = run(
            pictures, "--connect", server.url, typed="\n/now which colour?\n/nonsense\n/quit\nnever asked\n"
        )
        assert out.splitlines()[2:] == ["It is green.[2J"]
    last = server.chats()[-1].body
    assert picture_of(last).size == (60, 40)
    assert last["messages"][1]["content"][1]["text"] == "which colour?"
    assert "[00:00] It is red." in last["messages"][0]["content"]
    assert (len(server.chats()), err) == (3, "")


def test_frames_are_sent_small(run, tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (1600, 900)).save(tmp_path / "p" / "a.png")
    with fake(seeing) as server:
        run(tmp_path / "p", "--connect", server.url, "--prompt", "石头、剪刀、布？", "--size", 200, "--max-tokens", 5)
    body = server.chats()[0].body
    width, height = picture_of(body).size
    assert (width, height) == (266, 150)
    assert (body["messages"][0]["content"][1]["text"], body["max_tokens"]) == ("石头、剪刀、布？", 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.mp4"], "there is no nothing.mp4"), (["/dev/video99"], "video"), (["p"], "has no pictures"),
        (["p/bad.gif"], "not a PNG, JPEG, WebP or GIF"), (["p", "--log", "p/bad.gif"], "line 1: no line of a log"),
    ],
)  # fmt: skip
def test_what_cannot_be_watched_is_said(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "bad.gif").write_bytes(b"no gif\n")
    if words == ["p"]:
        (tmp_path / "p" / "bad.gif").unlink()
    with fake(seeing) as server:
        code, _, err = run(*words, "--connect", server.url)
    assert code == 2
    assert message in err


def test_a_model_that_does_not_see_says_so(run, tmp_path):
    with fake(lambda _: answer(400, {"error": {"message": "one does not see pictures"}})) as server:
        code, _, err = run(folder(tmp_path / "p", ["red"]), "--connect", server.url)
    assert (code, "one does not see pictures" in err) == (2, True)
    for odd in ([], {}, {"choices": None}, {"choices": [1]}, {"choices": [{"message": 3}]}):
        with fake(lambda _, odd=odd: answer(200, odd)) as server:
            code, _, err = run(folder(tmp_path / "p", ["red"]), "--connect", server.url)
        assert (code, "sent no answer" in err) == (2, True)


def test_without_a_server_one_is_started_and_says_why_it_ends(run, tmp_path):
    code, _, err = run(folder(tmp_path / "p", ["red"]), "-m", tmp_path / "no.gguf")
    assert code == 2
    assert "the server for it has ended" in err
    assert "no.gguf" in err


# --- something live


def test_of_something_live_the_newest_frame_is_described():
    frames = [Frame(index * 0.03, np.full((8, 8, 3), 40 * (index % 2), np.uint8)) for index in range(20)]
    newest = Newest(iter(frames), live=False, paced=True, changes=Changes(), after=-1.0)
    described = []
    for seen in newest.frames():
        assert time.monotonic() - seen.taken < 5
        described.append(seen.frame.seconds)
        time.sleep(0.1)  # a model takes longer than a frame lasts
    assert described == sorted(described)
    assert len(described) + newest.dropped == 20
    assert newest.dropped > 5
    assert newest.newest is frames[-1]


def test_what_was_described_before_is_not_waited_for():
    """A file that is played goes on where its log ends, at once."""
    frames = [Frame(float(index), np.full((8, 8, 3), 40 * (index % 2), np.uint8)) for index in range(1000)]
    newest = Newest(iter(frames), live=False, paced=True, changes=Changes(), after=997.5)
    began = time.monotonic()
    assert next(newest.frames()).frame.seconds == 998
    assert time.monotonic() - began < 5
    newest.stop()


def test_an_error_of_a_live_source_comes_out_and_it_can_be_stopped():
    def broken():
        yield Frame(0.0, np.zeros((8, 8, 3), np.uint8))
        raise ValueError("unplugged")

    with pytest.raises(ValueError, match="unplugged"):
        list(Newest(broken(), live=True, paced=False, changes=Changes(), after=-1.0).frames())
    endless = (Frame(0.0, np.full((8, 8, 3), 200 * (i % 2), np.uint8)) for i in iter(int, 1))
    newest = Newest(endless, live=True, paced=False, changes=Changes(), after=-1.0)
    newest.stop()
    assert list(newest.frames()) == []


def test_the_newest_lines_go_with_a_question():
    log = Log(None, "x")
    for index in range(500):
        log.saw(Entry(float(index * 60), "a sentence of forty letters or so, indeed", 0.1))
    text = log.text()
    assert len(text) < MAX_TEXT + 60
    assert text.startswith("(") and text.endswith("indeed")  # noqa: PT018
    assert "earlier lines are left out" in text.splitlines()[0]
    assert text.splitlines()[-1].startswith("[8:19:00]")
    assert (clock(59.9), clock(3600)) == ("00:59", "1:00:00")
    assert one_line("a\n\tb \x07c") == "a b c"


@pytest.mark.slow  # two servers start
def test_a_real_engine_that_sees_watches_without_a_server(run, tmp_path):
    """Random weights: what they say means nothing, but every part between the camera and the log is the real one."""
    vision = pytest.importorskip("tests.engine.vision", reason="torch is not installed")
    row = vision.small("minicpm-v-2.6")
    row = replace(row, slicing=replace(row.slicing, resolution=56))
    (tmp_path / "model").mkdir()
    tiny = write_tiny(tmp_path / "model" / "tiny.gguf", context=1024)
    vision.written(tmp_path / "model", row).rename(tmp_path / "model" / "mmproj-tiny.gguf")
    pictures, log = folder(tmp_path / "p", ["red", "red", "blue"]), tmp_path / "log.jsonl"
    words = ("--size", 112, "--max-tokens", 4, "--log", log)
    code, out, err = run(pictures, "-m", tiny, *words, typed="what was there?\n/now and now?\n")
    assert (code, err) == (0, "")
    assert [row["seconds"] for row in rows(log)] == [0, 2, 2, 2]
    assert [row.get("asked") for row in rows(log)] == [None, None, "what was there?", "and now?"]
    assert out.count("s behind") == 2
    # A model that does not see says so.
    (tmp_path / "model" / "mmproj-tiny.gguf").unlink()
    code, _, err = run(pictures, "-m", tiny, *words[:4])
    assert code == 2
    assert "does not" in err or "no pictures" in err or "text only" in err


@pytest.mark.parametrize("end", ["/quit", EOFError, KeyboardInterrupt])
def test_at_a_terminal_both_go_on_at_once(run, tmp_path, monkeypatch, end):
    pictures, log = folder(tmp_path / "p", ["red", "green"]), tmp_path / "log.jsonl"
    typed = iter(["what was there?", "/help", end])

    def person():
        until = time.monotonic() + 20
        while not (log.exists() and len(rows(log)) >= 2) and time.monotonic() < until:
            time.sleep(0.01)
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", person)
    with fake(seeing) as server:
        code, out, _ = run(pictures, "--connect", server.url, "--log", log, terminal=True)
    assert code == 0
    assert "2 lines" in out
    assert len(rows(log)) == 3


def test_at_a_terminal_an_error_of_the_source_is_told(run, tmp_path, monkeypatch):
    pictures = folder(tmp_path / "p", ["red"])
    (pictures / "001.png").write_bytes(b"broken")
    monkeypatch.setattr("builtins.input", lambda: time.sleep(0.5) or "/quit")
    with fake(seeing) as server:
        code, _, err = run(pictures, "--connect", server.url, terminal=True)
    assert (code, "001.png: the image is not a PNG" in err) == (2, True)
