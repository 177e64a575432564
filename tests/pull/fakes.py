"""A hub that misbehaves on command, wheels made on the spot, and what the tests of pull share."""

import hashlib
import random
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gangpao import catalog
from gangpao.progress import Silent
from gangpao.pull import Limits, pull

SEGMENT = 1 << 16
QUICK = Limits(connect_s=5, read_s=5, window_s=5, attempts=4, backoff_s=0.01, segment=SEGMENT, part_s=30)
DATA = random.Random(7).randbytes(10 * SEGMENT + 1234)
SHA = hashlib.sha256(DATA).hexdigest()


class Hub:
    """A hub on the loopback interface. `files`: path -> bytes; `rules`: what goes wrong, asked before each answer."""

    def __init__(self):
        self.files, self.headers, self.etags, self.redirects = {}, {}, {}, {}
        self.ranges = True
        self.log = []
        self.sent = 0
        self.rule = lambda request: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *about: None  # clients that hang up in the middle are the point here
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        path = request.path
        self.log.append((request.command, path, dict(request.headers)))
        action = self.rule(request) or {}
        if path in self.redirects:
            self._head(request, 302, {"Location": self.redirects[path], **self.headers.get(path, {})}, 0)
            return
        body = self.files.get(path)
        if body is None or "status" in action:
            self._head(request, action.get("status", 404), action.get("headers", {}), 0)
            return
        etag = self.etags.get(path, '"1"')
        headers = {"ETag": etag, **self.headers.get(path, {})}
        asked = request.headers.get("Range")
        status = 200
        if asked and self.ranges and request.headers.get("If-Range", etag) == etag:
            first, last = asked.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[int(first) : int(last) + 1], 206
        self._head(request, status, headers, len(body))
        if request.command == "GET":
            self._body(request, body, action)

    def _head(self, request, status, headers, length):
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(length))
        request.end_headers()

    def _body(self, request, body, action):
        cut = body[: action.get("cut", len(body))]
        step = action.get("step", 1 << 14)
        try:
            for start in range(0, len(cut), step):
                request.wfile.write(cut[start : start + step])
                self.sent += len(cut[start : start + step])
                if "pause" in action:
                    time.sleep(action["pause"])
        except OSError:  # the client has gone
            return
        if "stall" in action:
            time.sleep(action["stall"])
        if len(cut) < len(body):
            request.close_connection = True

    def ranged(self):
        """Ranges asked for, without the probe of one byte."""
        asked = [headers.get("Range") for _, _, headers in self.log]
        return [text for text in asked if text and text != "bytes=0-0"]


HF = '{ kind = "huggingface", repo = "o/hf", file = "t.gguf" }'
MS = '{ kind = "modelscope", repo = "o/ms", file = "t.gguf" }'


def get(name="tiny", **kw):
    return pull(name, limits=kw.pop("limits", QUICK), **kw)


def visible(store: Path) -> list[str]:
    return sorted(p.name for p in store.iterdir() if p.name != catalog.STAGING) if store.is_dir() else []


class Notes(Silent):
    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def make_wheel(folder, package, members):
    dist = package.replace("-", "_")
    with zipfile.ZipFile(folder / f"{dist}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
        archive.writestr(f"{dist}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{dist}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{dist}-1.0.dist-info/RECORD", "")
