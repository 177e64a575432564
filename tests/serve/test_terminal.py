"""`gangpao chat` on a pseudo terminal, driven like a person does it, over the fake model."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from gangpao.engine.sample import SamplingParams
from gangpao.serve import loading
from gangpao.serve.terminal import Chat, Local, read_question
from tests.child import environment
from tests.engine.fakes import fake_engine
from tests.engine.tiny import write_tiny

DRIVER = Path(__file__).parent / "fake_cli.py"
ROOT = Path(__file__).parent.parent.parent


class Terminal:
    """A child on a pseudo terminal: send text, expect a pattern in what comes back."""

    def __init__(self, tmp_path, *args, replies=("hello",), delay=0.0):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        env = environment(
            TERM="xterm",
            XDG_STATE_HOME=str(tmp_path / "state"),
            FAKE_DELAY=str(delay),
            FAKE_TTY="1",
            HOME=str(tmp_path),
        )
        if replies:
            env["FAKE_REPLIES"] = json.dumps(replies)
        self.child = subprocess.Popen(
            [sys.executable, str(DRIVER), *args], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            cwd=tmp_path, env=env,
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ctrl_c(self) -> None:
        # CPython's readline misses a signal that comes between showing the prompt and waiting for a key.
        time.sleep(0.2)
        self.send("\x03")

    def expect(self, pattern: str, timeout: float = 15.0) -> str:
        """Read until the pattern is there; what came before and with it is used up."""
        end = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.seen.decode(errors="replace"))
            if found:
                text = self.seen.decode(errors="replace")[: found.end()]
                self.seen = self.seen[len(text.encode()) :]
                return text
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen.decode(errors='replace')!r}"
            with contextlib.suppress(OSError):
                chunk = os.read(self.master, 4096)
                assert chunk, f"ended without {pattern!r}: {self.seen!r}"
                self.seen += chunk
                continue
            raise AssertionError(f"ended without {pattern!r}: {self.seen.decode(errors='replace')!r}")

    def wait(self) -> int:
        with contextlib.suppress(OSError):
            while os.read(self.master, 4096):
                pass
        return self.child.wait(timeout=15)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path):
    made = []

    def make(*args, **kw):
        made.append(Terminal(tmp_path, *args, **kw))
        return made[-1]

    yield make
    for t in made:
        t.close()


PROMPT = r">\x1b\[0m "
FIGURES = r"\d+ tokens · [\d.]+ tok/s · first after [\d.]+ s · [\d.]+ yuan"


def test_a_chat_with_an_interrupt_stats_save_and_history(terminal, tmp_path):
    t = terminal("chat", "-m", "fake", replies=["山东最高峰是泰山。" * 40, "second answer"], delay=0.01)
    t.expect(PROMPT)
    t.send("第一个 question\n")
    t.expect("山东最高峰是泰山")
    t.ctrl_c()
    t.expect(FIGURES + " · stopped")
    t.expect(PROMPT)
    t.send("and the next?\n")
    assert "�" not in t.expect("second answer\r\n")
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.send("/stats\n")
    t.expect(r"answers\s+2, \d+ tokens")
    t.expect(PROMPT)
    t.send("/save talk.json\n")
    t.expect("saved 4 messages")
    t.send("/save talk.json\n")
    t.expect("error: talk.json exists already")
    t.expect(PROMPT)
    t.send("\x04")
    assert t.wait() == 0
    talk = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["role"] for m in talk] == ["user", "assistant", "user", "assistant"]
    assert talk[0]["content"] == "第一个 question"
    assert talk[1]["content"].startswith("山东最高峰")
    assert len(talk[1]["content"]) < 360
    assert talk[3]["content"] == "second answer"
    history = tmp_path / "state" / "gangpao" / "chat_history"
    assert "and the next?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_twice_at_the_prompt_leaves(terminal):
    t = terminal("chat")
    t.expect(PROMPT)
    t.send("half a quest")
    t.expect("half a quest")
    t.ctrl_c()
    t.expect("Ctrl-C again")
    t.expect(PROMPT)
    t.ctrl_c()
    assert t.wait() == 0


def test_one_ctrl_c_then_a_question_does_not_count_as_twice(terminal):
    t = terminal("chat", replies=["yes"])
    t.expect(PROMPT)
    t.ctrl_c()
    t.expect("Ctrl-C again")
    t.expect(PROMPT)
    t.send("well?\n")
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.ctrl_c()
    t.expect("Ctrl-C again")
    t.expect(PROMPT)
    t.send("/quit\n")
    assert t.wait() == 0


def test_multi_line_questions_and_recall(terminal, tmp_path):
    t = terminal("chat", replies=["ok"])
    t.expect(PROMPT)
    t.send('"""first\n')
    t.expect(r"\. ")
    t.send('  second"""\n')
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.send("a\\\n")
    t.expect(r"\. ")
    t.send("b\n")
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.send("\x1b[A\x1b[Aedited\n")  # two up: the line before, with more typed behind it
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.send("/save t.json\n")
    t.expect("saved")
    said = [m["content"] for m in json.loads((tmp_path / "t.json").read_text())["messages"] if m["role"] == "user"]
    assert said == ["first\n  second", "a\nb", "a\\edited"]


def test_the_real_engine_is_interrupted_and_goes_on(terminal, tmp_path):
    t = terminal(
        "chat", "-m", str(write_tiny(tmp_path / "tiny.gguf")), "--max-tokens", "1000000", "--temperature", "5",
        "--top-k", "0", "--top-p", "1", "--seed", "3", replies=None, delay=0.01,
    )  # fmt: skip
    for _ in range(3):
        t.expect(PROMPT)
        t.send("go on\n")
        t.expect(r"\x1b\[K[^\x1b\r\n]")
        t.ctrl_c()
        t.expect(r"[1-9]\d* tokens · .* yuan · stopped")
    t.expect(PROMPT)
    t.send("/stats\n")
    t.expect(r"model +tiny \(llama\), \w+ kernels")
    t.send("/quit\n")
    assert t.wait() == 0


def test_without_a_terminal_one_question_is_answered(tmp_path):
    out = subprocess.run(
        [sys.executable, str(DRIVER), "chat"], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path,
        env=environment(FAKE_REPLIES='["Il fait beau."]'), timeout=30,
    )  # fmt: skip
    assert out.returncode == 0
    assert out.stderr == ""
    assert "weather" in out.stdout
    assert "Il fait beau.\n" in out.stdout
    assert re.search(FIGURES, out.stdout)
    assert "\x1b" not in out.stdout


def chat_of(*replies, context=512, **params):
    return Chat(Local(fake_engine(*replies, context=context), SamplingParams(**params), meter=loading.Meter()))


def lines(*given):
    """A stand-in for input()."""
    left = list(given)
    return lambda _prompt: left.pop(0)


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        (["plain"], "plain"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""a', "", 'b"""'], " a\n\nb"),
        (['"""whole"""'], " whole"),
        (['"""', "/not a command", '"""'], " /not a command"),
    ],
)
def test_read_question(typed, question):
    assert read_question("> ", lines(*typed)) == question


def test_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "kernels_line", lambda: "fake kernels")
    chat = chat_of("answer one", "answer two")
    for line in ("/help", "/system be kind", "/system", "/nothing", "/save", "/stats"):
        assert chat.command(line)
    out = capsys.readouterr().out
    for text in ("/reset", "be kind\n", "there is no command /nothing", "error: say where", "0 of 512"):
        assert text in out
    chat.answer("hi")
    assert chat.command("/save talk.md")
    assert (
        tmp_path / "talk.md"
    ).read_text() == "## system\n\nbe kind\n\n## user\n\nhi\n\n## assistant\n\nanswer one\n\n"
    assert chat.command("/save no/such/folder.md")
    assert "error: " in capsys.readouterr().out
    chat.command("/reset")
    assert chat.conversation.messages == [{"role": "system", "content": "be kind"}]
    assert not chat.command("/quit")


def test_a_question_too_long_is_said_and_forgotten(capsys):
    chat = chat_of("fine", context=64)
    chat.answer("x" * 100)
    assert "error: the question has" in capsys.readouterr().out
    assert chat.conversation.messages == []
    chat.answer("short")
    assert "fine\n" in capsys.readouterr().out


def test_show_yuan():
    assert loading.show_yuan(0) == "0 yuan"
    assert loading.show_yuan(1.234) == "1.23 yuan"
    assert loading.show_yuan(0.0000123) == "0.000012 yuan"
