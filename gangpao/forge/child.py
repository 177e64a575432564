"""A command of a line as a process of its own: what it says on stdout is the answer, stderr goes on to the screen and into a log.

The process ends when the line's ends, however that ends: Linux sends it SIGTERM, upon which every command of ours saves what it
has. The next call waits until it is gone, so that no two write into one folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import TextIO

from gangpao.forge.stages.stage import Command
from gangpao.long_command import mortal

_PYTHON = (sys.executable, "-P", "-c", "import sys; from gangpao.cli import main; sys.exit(main())")
_WAIT_S = 120.0
PROCESS = "process"


class Failed(ValueError):
    """A command ended with an error."""


class Stopped(Exception):
    """A signal ended the line; everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def shown(command: Command) -> str:
    """As a person would type it."""
    first = ("-m", "gangpao.cli") if command.launch else ("gangpao",)
    return shlex.join([*command.launch, *first, *command.words])


def command_words(command: Command) -> list[str]:
    """What is executed: gangpao in this Python, or behind a launcher that takes a module."""
    return [*command.launch, "-m", "gangpao.cli", *command.words] if command.launch else [*_PYTHON, *command.words]


def run(command: Command, state: Path, log: Path, stream: TextIO | None) -> str:
    """What the command said on stdout. state: folder that remembers the process. Raises Failed with its last words, and Stopped."""
    words = mortal(command_words(command))
    log.parent.mkdir(parents=True, exist_ok=True)
    with closing(_Log(log, stream)) as kept:
        kept.write(f"$ {shown(command)}\n")
        # This gangpao also behind a launcher, not one that lies in the folder.
        env = os.environ | {"PYTHONSAFEPATH": "1"}
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env
        ) as process:  # fmt: skip
            try:
                (state / PROCESS).write_text(f"{process.pid}\n{_begun(process.pid)}\n", encoding="utf-8")
            except OSError:
                process.terminate()
                raise
            with _beating(log):
                said, last, received = _listen(process, kept)
        kept.write(said)
        code = process.returncode
    (state / PROCESS).unlink(missing_ok=True)
    if received:
        raise Stopped(received[0])
    if code not in command.codes:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        raise Failed(f"`{shown(command)}` {ended}: {last or 'it said nothing'} (all it said: {log})")
    return said


class _Log:
    """What a command says, to a file and on to the screen. Where a disk is full or a terminal gone, that is said once on the other,
    and the command is heard on: one that nobody hears would wait forever."""

    def __init__(self, path: Path, stream: TextIO | None) -> None:
        self._stream = stream
        self._path = path
        self._file: FileIO | None = FileIO(path, "a")

    def write(self, text: str, *, on_screen: bool = False) -> None:
        """Into the file, and with on_screen to the screen."""
        if self._file is not None:
            try:
                self._file.write(text.encode("utf-8", "replace"))
            except OSError as error:
                self._file.close()
                self._file = None
                self._show(f"note: {self._path}: {error.strerror}: what commands say is not kept\n")
        if on_screen:
            self._show(text)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _show(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self._stream = None
            self.write(f"note: the screen is gone: {error.strerror}\n")


def _listen(process: subprocess.Popen[str], kept: _Log) -> tuple[str, str, list[int]]:
    """Until the process ends: what it said on stdout, its last line on stderr, and the signals that ended it."""
    last = [""]

    def pass_on() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            kept.write(line, on_screen=True)
            last[0] = line.strip().removeprefix("error: ") or last[0]

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    with _signals_for(process) as received:
        assert process.stdout is not None
        said = process.stdout.read()
        process.wait()
    reader.join()
    return said, last[0], received


@contextmanager
def _beating(log: Path) -> Iterator[None]:
    """Touch the log every second: a call that is killed is known to have lived until then, whether its command said anything."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            if log.is_file():
                os.utime(log)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _signals_for(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Signals to end go to the process, once each; it decides when it is done. Ctrl-C reaches it from the terminal as well."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM or not sys.stdin.isatty():
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def wait_for_earlier(state: Path, stream: TextIO | None) -> None:
    """Until the process of a call that was killed has ended. Raises ValueError when it does not."""
    try:
        pid, begun = (state / PROCESS).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return
    until = time.monotonic() + _WAIT_S
    while begun and _begun(int(pid)) == begun:
        if time.monotonic() > until:
            raise ValueError(f"process {pid} of an earlier call still runs; end it with: kill {pid}")
        if stream is not None and until - time.monotonic() > _WAIT_S - 0.1:
            print(f"waiting for process {pid} of an earlier call, which saves what it has", file=stream, flush=True)
        time.sleep(0.2)
    (state / PROCESS).unlink(missing_ok=True)


def _begun(pid: int) -> str:
    """When a process began, as Linux counts; empty for one that is gone, and on other systems."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def last_line(log: Path, most: int = 16_384) -> str:
    """The last thing that a command said, of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - most))
            lines: Sequence[str] = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
