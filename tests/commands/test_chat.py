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
import textwrap
import time
import weakref
from pathlib import Path

import pytest

from gangpao import catalog, cost
from gangpao.commands.chat import Chat, Local, read_question
from gangpao.commands.model.loading import load_engine
from gangpao.commands.terminal import screen
from tests.child import environment
from tests.commands.screen import Screen
from tests.engine.fakes import fake_engine
from tests.engine.tiny import write_tiny

DRIVER = Path(__file__).parent / "fake_cli.py"
ROOT = Path(__file__).parent.parent.parent


class Terminal:
    """A child on a pseudo terminal: send text, expect a pattern in what comes back."""

    def __init__(self, tmp_path, *args, replies=("hello",), delay=0.0, columns=200):
        self.master, slave = pty.openpty()
        self.resize(columns)
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

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

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
LAST = r"yuan\x1b\[0m"  # of the figures, which a narrow window wraps
FIGURES = r"\d+ tokens · [\d.]+ tok/s · first after [\d.]+ s( · \d+ of \d+ drafted)? · [\d.]+ yuan"


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


def test_answers_are_wrapped_also_in_a_window_that_was_resized(terminal):
    english, chinese = (
        "A hash table maps keys to values, quickly. " * 4,
        "哈希表把键映射到值，平均一次比较就能找到。" * 4,
    )
    t = terminal("chat", "--context", "2048", replies=[english, chinese], columns=30)
    t.expect(PROMPT)
    t.send("one\n")
    rows = Screen(30).feed(t.expect(LAST)).text
    assert [row.strip() for row in rows if row in textwrap.wrap(english, 29)] == textwrap.wrap(english, 29)
    t.expect(PROMPT)
    t.resize(20)
    t.send("two\n")
    rows = Screen(20).feed(t.expect(LAST)).text
    assert chinese in "".join(rows)
    assert rows[1:3] == ["哈希表把键映射到", "值，平均一次比较就"]  # a comma begins no row
    t.send("/quit\n")
    assert t.wait() == 0


def test_a_thought_is_shown_and_folded_away(terminal, tmp_path):
    thought = "\n".join(f"step {i} of a thought that is longer than the window is wide" for i in range(9))
    t = terminal("chat", "--context", "4096", replies=[f"<think>\n{thought}\n</think>\n\nFour.", "Five."], columns=40)
    t.expect(PROMPT)
    t.send("2 + 2?\n")
    seen = t.expect(LAST)
    assert "\x1b[2mstep 0 of a thought" in seen
    rows = Screen(40).feed(seen).text
    assert re.fullmatch(r"thought for \d+\.\d s", rows[1])
    assert rows[2] == "Four."
    assert not any("step" in row for row in rows)
    t.expect(PROMPT)
    t.send("/thoughts\n")
    assert "step 0 of a thought" in t.expect("step 8 of a thought that is longer than")
    t.expect(PROMPT)
    t.send("And now?\n")
    t.expect("Five.")
    t.expect(PROMPT)
    t.send("/save talk.json\n")
    t.expect("saved 4")
    said = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in said] == ["2 + 2?", "Four.", "And now?", "Five."]


def test_a_window_that_is_closed_loses_no_question_and_no_history_keeps_none(terminal, tmp_path):
    history = tmp_path / "state" / "gangpao" / "chat_history"
    t = terminal("chat", "--no-history", replies=["one"])
    t.expect(PROMPT)
    t.send("a secret\n")
    t.expect(FIGURES)
    t.expect(PROMPT)
    t.send("\x1b[A")
    t.expect("a secret")  # recalled, not kept
    t.send("\x15\x04")
    assert t.wait() == 0
    assert not history.exists()
    first, second = terminal("chat"), terminal("chat")
    for t, text in ((first, "from one"), (second, "from another")):
        t.expect(PROMPT)
        t.send(f"{text}\n")
        t.expect(FIGURES)
        t.expect(PROMPT)
        t.child.kill()
    assert history.read_text().splitlines() == ["from one", "from another"]
    assert history.stat().st_mode & 0o077 == 0


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
    return Chat(Local(fake_engine(*replies, context=context), params, meter=cost.Meter(), load=load_engine))


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
    monkeypatch.setattr(screen, "kernels_line", lambda: "fake kernels")
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


def test_an_unknown_command_or_setting_names_the_nearest(capsys):
    chat = chat_of("x")
    for line, hint in (
        ("/modle", "did you mean /model?"),
        ("/quti", "did you mean /quit?"),
        ("/xyzzy", "/help lists them"),
    ):
        assert chat.command(line)
        assert hint in capsys.readouterr().out
    chat.command("/set temprature 1")
    assert "error: there is no setting temprature; did you mean temperature? /set lists them" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    chat = chat_of("x")
    chat.command("/help")
    listed = re.findall(r"^/(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == [
        "help",
        "model",
        "set",
        "image",
        "retry",
        "think",
        "thoughts",
        "reset",
        "system",
        "stats",
        "save",
        "quit",
    ]
    for name in listed[1:-1]:
        chat.command(f"/{name}")
        assert "there is no command" not in capsys.readouterr().out


def test_set_shows_changes_and_checks(capsys):
    chat = chat_of("x", temperature=0.5)
    chat.command("/set")
    out = capsys.readouterr().out
    for name, value in (("temperature", "0.5"), ("max_tokens", "1024"), ("seed", "random"), ("system", "(none)")):
        assert f"{name:20} {value}\n" in out
    for line in ("/set temperature 0.25", "/set top-p 0.5", "/set max_tokens 7", "/set seed 3", "/set system be kind"):
        chat.command(line)
    params = chat.conversation.params
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.25, 0.5, 7, 3)
    assert chat.conversation.system == "be kind"
    capsys.readouterr()
    for line, said in (
        ("/set temperature", "temperature is 0.25; Randomness"),
        ("/set temperature hot", "error: temperature must be a number, got 'hot'"),
        ("/set temperature 9", "error: temperature must be from 0.0 to 5.0, got 9.0"),
        ("/set max_tokens 1.5", "error: max_tokens must be a whole number, got '1.5'"),
        ("/set seed default", "seed is random"),
        ("/set temperature default", "temperature is 0.8"),
    ):
        chat.command(line)
        assert said in capsys.readouterr().out
    assert params != chat.conversation.params


def test_retry_gives_another_answer_to_the_same_question(capsys):
    chat = Chat(
        Local(
            fake_engine(context=512),
            {"temperature": 1, "seed": 7, "max_tokens": 20},
            meter=cost.Meter(),
            load=load_engine,
        )
    )
    chat.command("/retry")
    assert "error: there is no question yet" in capsys.readouterr().out
    answers = []
    chat.answer("say")
    for _ in range(3):
        answers.append(chat.conversation.turns[-1]["content"])
        assert [m["role"] for m in chat.conversation.turns] == ["user", "assistant"]
        chat.command("/retry")
    assert len(set(answers)) == 3
    same = Chat(
        Local(
            fake_engine(context=512),
            {"temperature": 1, "seed": 8, "max_tokens": 20},
            meter=cost.Meter(),
            load=load_engine,
        )
    )
    same.answer("say")
    assert same.conversation.turns[-1]["content"] == answers[1]  # the seeds follow each other
    capsys.readouterr()
    same.command("/set temperature 0")
    same.command("/retry")
    assert "at temperature 0 the answer would be the same" in capsys.readouterr().out


def test_a_retry_that_says_nothing_keeps_the_answer_before(capsys):
    chat = chat_of("first")
    chat.answer("q")
    chat.conversation.engine.model.interrupt_at = 0
    chat.command("/retry")
    assert [m["content"] for m in chat.conversation.turns] == ["q", "first"]


def test_another_model_goes_on_with_the_conversation(capsys, monkeypatch, tmp_path):
    (tmp_path / "b.gguf").touch()
    here = {"a": tmp_path / "a.gguf", "b": tmp_path / "b.gguf", "folder": tmp_path / "folder"}
    monkeypatch.setattr(catalog, "installed", lambda: here)
    loaded, alive = [], []

    def load(name):
        assert not [ref for ref in alive if ref() is not None], "two models are in memory"
        if name == "b":
            raise ValueError("b is damaged")
        loaded.append(name)
        engine = fake_engine(f"from {name}")
        engine.name = name
        alive.append(weakref.ref(engine.model))
        return engine

    chat = Chat(Local(load("a"), {}, meter=cost.Meter(), load=load))
    chat.answer("one")
    chat.command("/model")
    assert "* a\n  b\n/model NAME" in capsys.readouterr().out
    chat.command("/model c")
    assert "error: " in capsys.readouterr().out
    chat.command("/model b")
    assert "error: b is damaged" in capsys.readouterr().out
    assert chat.conversation.model_name == "a"
    chat.answer("two")
    here["c"] = here["b"]
    chat.command("/model c")
    assert "c, context 512 tokens" in capsys.readouterr().out
    chat.answer("three")
    assert loaded == ["a", "a", "c"]
    assert [m["content"] for m in chat.conversation.turns[1::2]] == ["from a", "from a", "from c"]


def test_an_answer_that_was_cut_off_says_by_what(capsys):
    chat = chat_of("x" * 100, context=60, max_tokens=10)
    chat.answer("q")
    assert "(cut off: max_tokens is 10, /set max_tokens changes it)" in capsys.readouterr().out
    chat.command("/set max_tokens 1000")
    chat.answer("q")
    assert "oldest tokens were dropped; a larger --context holds more)" in capsys.readouterr().out


def test_a_question_too_long_is_said_and_forgotten(capsys):
    chat = chat_of("fine", context=64)
    chat.answer("x" * 100)
    assert "error: the question has" in capsys.readouterr().out
    assert chat.conversation.messages == []
    chat.answer("short")
    assert "fine\n" in capsys.readouterr().out


def test_show_yuan():
    assert cost.show_yuan(0) == "0 yuan"
    assert cost.show_yuan(1.234) == "1.23 yuan"
    assert cost.show_yuan(0.0000123) == "0.000012 yuan"
