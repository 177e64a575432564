"""Render a chat template that somebody else wrote, in a process that can be killed (sandbox_child.py holds the limits).

A template is a program. jinja2's sandbox stops it from reaching into Python, and lets it fill the memory or loop for an
hour. So it runs in a small process of its own: started with an empty environment and Python's isolated mode, kept warm
between renderings (a rendering takes about a millisecond, a start 0.1 s), killed when it takes too long and started
again for the next one.

What it gives up: systems without POSIX limits (Windows), where only templates that are recognised can be used.
"""

import atexit
import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

WALL_S = 5.0  # the child's own limit is processor time; this one is for a machine that gives it none
_START_S = 30.0
_ANSWER_BYTES = 8_000_000
_REQUEST_BYTES = 16_000_000


class TemplateError(ValueError):
    """A chat template failed, took too long or said too much."""


class TemplateWorker:
    """One child process, started when first needed. Safe to share between threads; renders one template at a time."""

    def __init__(self, *, wall_s: float = WALL_S) -> None:
        self._wall_s = wall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, source: str, context: Mapping[str, object]) -> str:
        """The text of template `source` with JSON-like `context`. Raises TemplateError."""
        request = json.dumps({"source": source, "context": dict(context)}).encode() + b"\n"
        if len(request) > _REQUEST_BYTES:
            raise TemplateError(f"the conversation is too long for a chat template ({len(request)} bytes)")
        with self._lock:
            process = self._start()
            try:
                assert process.stdin is not None
                process.stdin.write(request)
                process.stdin.flush()
                line = self._read(process, self._wall_s)
            except BrokenPipeError:
                line = b""
            except BaseException:  # Ctrl-C included: an answer nobody read must not be taken for the next one's
                self._kill()
                raise
            if not line:
                self._kill()
                raise TemplateError("the model's chat template took too much time or memory and was stopped")
        return self._text(line)

    def close(self) -> None:
        """End the child process. The worker can be used again."""
        with self._lock:
            self._kill()

    def _text(self, line: bytes) -> str:
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(f"the model's chat template failed: {answer['error']}")
        text = answer["text"]
        assert isinstance(text, str)
        return text

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        child = Path(__file__).with_name("sandbox_child.py")
        command = [sys.executable, "-I", "-S", "-B", str(child), *_library_folders()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=os.sep,
            start_new_session=True,  # Ctrl-C in a terminal is for the chat, not for its helper
        )
        if not self._read(self._process, _START_S):
            self._kill()
            raise TemplateError("the process that renders chat templates did not start; is jinja2 installed?")
        return self._process

    def _read(self, process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
        """One line, or b"" at the end of the pipe, after `seconds`, or when it gets too long."""
        assert process.stdout is not None
        data = bytearray()
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or len(data) > _ANSWER_BYTES or not selector.select(left):
                    return b""
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    return b""
                data += piece
        return bytes(data)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # a request it never read; closed all the same


@functools.cache
def shared() -> TemplateWorker:
    """The worker of this program, ended with it."""
    worker = TemplateWorker()
    atexit.register(worker.close)
    return worker


def _library_folders() -> list[str]:
    """Where jinja2 and markupsafe lie: the child's isolated mode does not look there by itself."""
    folders: list[str] = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise TemplateError(f"this model's chat template needs the package {name}: pip install jinja2")
        folder = str(Path(spec.origin).parent.parent)
        if folder not in folders:
            folders.append(folder)
    return folders
