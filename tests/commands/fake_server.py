"""A server that answers what a test tells it to, byte by byte: for what a well-behaved server never does.

`with fake(script) as server:` serves on loopback in a thread. The script gets each Asked and gives back the raw pieces to
send, one write a piece; None in their place hangs up.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request: method, path, headers (lower case) and the JSON body."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Script = Callable[[Asked], Iterable[bytes | None]]


@dataclass
class Fake:
    """Where the server is, and what it was asked so far."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    def chats(self) -> list[Asked]:
        return [a for a in self.asked if a.method == "POST"]


def answer(status: int, body: Any, **headers: str) -> list[bytes]:
    """A whole response; a body that is not bytes is JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", "Connection: close", f"Content-Length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ["\r\n".join([*lines, "", ""]).encode() + raw]


def streamed(*pieces: bytes, status: int = 200) -> list[bytes]:
    """The head of an event stream, then its pieces as they are; the connection's end is the stream's."""
    head = f"HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
    return [head.encode(), *pieces]


def chunk(content: Any = None, finish: str | None = None, **more: Any) -> bytes:
    """One event with a chat chunk."""
    delta = {"content": content} if content is not None else {}
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


MODELS = {"object": "list", "data": [{"id": "one", "object": "model"}]}
DONE = b"data: [DONE]\n\n"


@contextmanager
def fake(script: Script, *, models: Any = MODELS, context: Any = None) -> Iterator[Fake]:
    """Serve until the block ends. /v1/models answers `models` unless that is None; context: an SSL context to serve with."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length", "0"))
            raw = self.rfile.read(length)
            headers = {k.lower(): v for k, v in self.headers.items()}
            asked = Asked(self.command, self.path, headers, json.loads(raw) if raw else None)
            server.asked.append(asked)
            listing = self.path.endswith("/models") and models is not None
            for piece in answer(200, models) if listing else script(asked):
                if piece is None:
                    break
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:  # the client has gone
                    break
            self.close_connection = True

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    if context is not None:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        httpd.handle_error = lambda *_: None  # a failed handshake is what some tests are about
    scheme = "http" if context is None else "https"
    server = Fake(f"{scheme}://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
