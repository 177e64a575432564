"""What commands that run for long share: the subcommand that needs no name, Ctrl-C while torch is imported, how a process ends, and
that those which it started end with it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup


class RunByDefault(TyperGroup):
    """A group in which `VERB CONFIG` means `VERB run CONFIG`; only names of subcommands are taken as such."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@contextlib.contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Let Ctrl-C wait for what is inside, which is the import of torch: half imported it crashes. A second one does not wait."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(130)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        say("stopped before anything began")
        raise typer.Exit(130)


# Asks Linux for SIGTERM when the process ends that started it, and becomes the command.
_MORTAL = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('the process that started this has ended')\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


def mortal(words: Sequence[str]) -> list[str]:
    """A command as one that gets SIGTERM when this process ends, however that ends. On Linux; elsewhere it is as it was."""
    if sys.platform != "linux":
        return list(words)
    return [sys.executable, "-P", "-c", _MORTAL, str(os.getpid()), *words]


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    """End with this code; a rank of torchrun ends here and now: everything is on the disk, and threads that torch's backends
    leave behind now and then abort a process while it takes itself apart, which torchrun counts as a lost rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)
