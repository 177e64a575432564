"""A server of our own for as long as something needs it: `gangpao serve` in a process, on a free port of this machine."""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from gangpao.commands.terminal import screen
from gangpao.long_command import mortal
from gangpao.openai_client import RemoteError, Server, tls

STARTS_S = 600.0  # a model may have to be downloaded first


@contextmanager
def served(model: str | None, *, yes: bool = False) -> Iterator[str]:
    """The address of a server with this model, the best installed one if None; it ends with this process, however that ends.

    Raises ValueError with its last words if it ends before.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-c", "from gangpao.cli import main; main()", "serve", "--port", str(port)]
    command += [*(["-m", model] if model else []), *(["-y"] if yes else [])]
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(mortal(command), stdin=subprocess.DEVNULL, stdout=words, stderr=words)
        try:
            screen.note("starting a server; Ctrl-C gives up")
            _wait(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        except ChildProcessError:
            words.seek(0)
            last = [line for line in words.read()[-4000:].splitlines() if line.strip()][-1:] or ["it said nothing"]
            raise ValueError(f"the server for it has ended: {last[0].removeprefix('error: ')}") from None
        finally:
            process.terminate()
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Until the server lists its models. Raises ChildProcessError where it ends, ValueError where that takes too long."""
    until = time.monotonic() + STARTS_S
    with closing(Server(url, None, tls(None, False))) as server:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise ChildProcessError
            try:
                server.models()
            except RemoteError:
                time.sleep(0.2)
            else:
                return
    raise ValueError(f"the server at {url} did not start within {STARTS_S:.0f} s")
