"""The questions of the MiniCPM report, typed into a real `gangpao chat`: docs/transcript.md and docs/images/chat.svg.

The chat runs in a pseudo-terminal, greedy, with /reset between the questions; what it prints is kept as it came, wrong
answers too. Speeds are those of the machine at hand.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unicodedata
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS = 96
PROMPTS = [
    (
        "mixed languages into French",
        "把下面这句话翻译成法语：Hello, 我今天要去 Beijing 开会，晚上和 friends 一起吃火锅。",
    ),
    ("an emoji put into a sentence", "在这句话里加上一个合适的 emoji：今天是我的生日，朋友们给我买了一个大蛋糕。"),
    ("a mountain of Shandong", "山东省最高的山是哪座山，它比黄山高还是矮？差距多少？"),
    (
        "code for a small model",
        "Write a PyTorch class for a two-layer perceptron with a ReLU and dropout. Only the code, no explanation.",
    ),
]
WAITING = re.compile(r"> (?:\x1b\[0m)?\Z|>\x1b\[0m \Z")  # the chat waits for a question
TIMEOUT = 600.0


class Terminal:
    """A command in a pseudo-terminal so wide that line editing never wraps."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 1000, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, env=environment, close_fds=True
        )
        os.close(slave)

    def read(self) -> str:
        """What is printed until the chat waits again, without the codes of line editing."""
        data, end = b"", time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                data += os.read(self.master, 65536)
            except OSError:  # the other side is gone
                break
            text = re.sub(r"\x1b\[\?2004[hl]|\x1b\[K|\r", "", data.decode("utf-8", "ignore"))
            if WAITING.search(text):
                return text
        raise ValueError(f"the chat ended or hangs; its last words: {data[-500:]!r}")

    def say(self, line: str) -> str:
        """Type a line; what follows, from the echo to the next prompt."""
        os.write(self.master, line.encode() + b"\n")
        return self.read()


def converse(model: str) -> tuple[str, list[str]]:
    """Everything on the screen, and the answer with its figures for each question."""
    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {"XDG_STATE_HOME": state, "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-P", "-m", "gangpao.cli", "chat", "-m", model, "--temperature", "0"]
        terminal = Terminal(command, environment)
        screen, answers = terminal.read(), []
        for i, (_, prompt) in enumerate(PROMPTS):
            if i:
                screen += terminal.say("/reset")
            said = terminal.say(prompt)
            screen += said
            answers.append(said.partition("\n")[2].rpartition("\n")[0])
            print(f"{i + 1} of {len(PROMPTS)}", file=sys.stderr)
        os.write(terminal.master, b"/quit\n")
        terminal.process.wait(TIMEOUT)
        return screen.rpartition("\n")[0], answers


def picture(screen: str) -> str:
    """The screen as SVG that loads nothing from elsewhere and leaves wide characters their width."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in screen.splitlines():
        # SVG viewers drop plain leading spaces.
        console.print(Text.from_ansi(re.sub(r"^ +", lambda m: "\N{NO-BREAK SPACE}" * len(m[0]), line)))
    svg = re.sub(r"@font-face\s*{[^}]*}", "", console.export_svg(title="gangpao"))

    def natural(match: re.Match[str]) -> str:
        wide = any(unicodedata.east_asian_width(c) in "WF" for c in match[2])
        return f"{match[1]}>{match[2]}<" if wide else match[0]

    return re.sub(r'(<text [^>]*?) textLength="[^"]*"[^>]*>([^<]*)<', natural, svg)


def main(argv: list[str] | None = None) -> int:
    """Ask, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b")
    model = parser.parse_args(argv).model
    screen, answers = converse(model)
    lines = [
        f"# What {model} answers\n",
        f"`python benchmarks/transcript.py {model}`, greedy decoding, answers as they came.\n",
    ]
    for (title, prompt), answer in zip(PROMPTS, answers, strict=True):
        text, _, figures = re.sub(r"\x1b\[[0-9;]*m", "", answer).strip().rpartition("\n")
        lines.append(f"## {title}\n\n> {prompt}\n\n{text.strip()}\n\n*{figures}*\n")
    (DOCS / "transcript.md").write_text("\n".join(lines), encoding="utf-8")
    (DOCS / "images" / "chat.svg").write_text(
        picture(f"$ gangpao chat -m {model} --temperature 0\n{screen}"), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
