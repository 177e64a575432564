"""Files over HTTP in ranges: several at once, resumable, and only over https.

The idea: the file is cut into segments, a state file lists the finished ones, a few threads fetch the others with
`Range`, each with its own retries. The server's ETag is remembered and sent as `If-Range`, so that a file that has
changed is noticed and fetched anew. Redirects are followed by hand: from https only to https, and plain http only on
the loopback interface; a token goes to the hub's own host and nowhere else. With GANGPAO_OFFLINE=1 nothing is asked at all.

What it gives up: a server without ranges gives one stream, which starts over when it is cut.
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from gangpao.machine import is_loopback
from gangpao.pull.staging import Limits, SourceError, Stopped, load_state, save_state

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS = 8
MAX_JSON = 8 << 20
CHUNK = 1 << 16

T = TypeVar("T")


class _Transient(Exception):
    """Worth another attempt, after so many seconds. `cost` of the attempts we have: waiting for nothing costs more."""

    def __init__(self, message: str, after_s: float = 0.0, cost: int = 1) -> None:
        super().__init__(message)
        self.after_s, self.cost = after_s, cost


class _Changed(Exception):
    """The file on the server is not the one we began with."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch: where, the name it gets here, and what is known about it (0 and "" where nothing is)."""

    url: str
    file: str
    size: int = 0
    sha256: str = ""
    git_oid: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def offline() -> bool:
    """Whether the user wants nothing asked of the network."""
    said = [os.environ.get(name, "").strip().lower() for name in ("GANGPAO_OFFLINE", "HF_HUB_OFFLINE")]
    return any(value not in ("", "0", "false", "no", "off") for value in said)


def check_online() -> None:
    """Raises SourceError where the user wants nothing asked of the network."""
    if offline():
        raise SourceError("GANGPAO_OFFLINE or HF_HUB_OFFLINE is set, so nothing is fetched")


def check_hop(target: str, origin: str | None = None) -> str:
    """The address itself if it may be asked, coming from `origin`. Raises SourceError for http and everything else."""
    to, back = urlsplit(target), urlsplit(origin or "")
    local = is_loopback(to.hostname or "") and (origin is None or is_loopback(back.hostname or ""))
    if not (to.scheme == "https" or (to.scheme == "http" and local)) or not to.hostname:
        step = f"redirects to {target[:200]!r}" if origin else f"is at {target[:200]!r}"
        raise SourceError(f"{step}, which is not https: refused, because anybody on the way could change the file")
    return target


class Web:
    """A connection pool. Use as a context manager."""

    def __init__(self, limits: Limits) -> None:
        import httpx2

        from gangpao import __version__

        self.limits = limits
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(limits.read_s, connect=limits.connect_s),
            headers={"User-Agent": f"gangpao/{__version__}", "Accept-Encoding": "identity"},
            follow_redirects=False,
        )

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    @contextmanager
    def open(
        self, method: str, url: str, headers: Mapping[str, str], *, follow: bool = True
    ) -> Iterator["httpx2.Response"]:
        """The answer to a request, redirects followed (with `follow` false: only those within the same host).

        Raises SourceError for an answer that will not change, and a transient error for one that may.
        """
        import httpx2

        sent = dict(headers)
        check_online()
        check_hop(url)
        try:
            for _ in range(MAX_REDIRECTS):
                with self._client.stream(method, url, headers=sent) as answer:
                    if not answer.is_redirect:
                        _check_status(answer)
                        yield answer
                        return
                    place = answer.headers["location"]
                    if not follow and urlsplit(place).netloc:
                        yield answer
                        return
                    next_url = check_hop(urljoin(url, place), url)
                    if urlsplit(next_url).netloc != urlsplit(url).netloc:
                        sent.pop("Authorization", None)
                    url = next_url
        except httpx2.TimeoutException as error:
            raise _Transient(f"{urlsplit(url).hostname} does not answer ({type(error).__name__})", cost=2) from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _Transient(f"{urlsplit(url).hostname}: {str(error) or type(error).__name__}") from error
        except httpx2.InvalidURL as error:
            raise SourceError(f"not an address: {url[:200]!r} ({error})") from error
        raise SourceError(f"more than {MAX_REDIRECTS} redirects")

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        """Headers (of the first answer that is not a redirect within the host) and body of a small answer."""

        def once() -> tuple[Mapping[str, str], bytes]:
            with self.open(method, url, headers, follow=method != "HEAD") as answer:
                body = bytearray()
                for chunk in answer.iter_bytes(CHUNK):
                    body += chunk
                    if len(body) > MAX_JSON:
                        raise SourceError(f"{url}: answers with more than {MAX_JSON} bytes")
                return dict(answer.headers), bytes(body)

        return retrying(self.limits, once)


def _check_status(answer: "httpx2.Response") -> None:
    status, where = answer.status_code, str(answer.url.copy_with(query=None))
    if status < 400:
        return
    if status in (408, 425, 429) or status >= 500:
        after = answer.headers.get("retry-after", "")
        raise _Transient(f"{where}: HTTP {status}", min(60.0, float(after)) if after.isdigit() else 0.0)
    if status in (401, 403):
        raise SourceError(
            f"{where}: HTTP {status}: the hub wants a token: set HF_TOKEN, and accept the model's terms there"
        )
    if status == 404:
        raise SourceError(f"{where}: HTTP 404: no such file there")
    raise SourceError(f"{where}: HTTP {status}")


def retrying(limits: Limits, once: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
    """The first contact with a server: call until it works, or raise SourceError after a few transient errors.

    Every error costs double here, because another source may be better than a long wait.
    """
    spent = attempt = 0
    while True:
        try:
            return once()
        except _Transient as error:
            spent, attempt = spent + 2 * error.cost, attempt + 1
            if spent >= limits.attempts:
                raise SourceError(f"{error}, {attempt} times in a row" if attempt > 1 else str(error)) from error
            wait(max(error.after_s, pause(limits, attempt)))


def pause(limits: Limits, attempt: int) -> float:
    """Seconds before the next attempt: doubling, with some chance so that clients do not come back together."""
    longest: float = min(20.0, limits.backoff_s * 2 ** min(attempt - 1, 16))
    return longest * random.uniform(0.5, 1.0)


class Download:
    """One remote file into one local one. `report` gets the bytes that are there, now and then, from any thread."""

    def __init__(
        self, web: Web, remote: Remote, part: Path, state_file: Path, report: Callable[[int], None], *,
        jobs: int = 4, stop: threading.Event | None = None,
    ) -> None:  # fmt: skip
        self._web, self._remote, self._limits = web, remote, web.limits
        self._part, self._state_file, self._report = part, state_file, report
        self._jobs, self._stop = jobs, stop or threading.Event()
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}
        self._moving: dict[int, int] = {}  # bytes of segments under way
        self._errors: list[Exception] = []

    def run(self) -> None:
        """Fetch what is missing. Raises SourceError, or OSError when the disk is full; what arrived is kept."""
        for _ in range(3):
            try:
                return self._run()
            except _Changed:
                self.discard()
        raise SourceError(f"{self._remote.url}: the file changes on the server while it is fetched")

    def discard(self) -> None:
        """Forget what is there."""
        self._state_file.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)
        self._state = {}

    def _run(self) -> None:
        etag, size, ranges = retrying(self._limits, self._probe, self._sleep)
        if self._remote.size and size and size != self._remote.size:
            raise SourceError(f"{self._remote.url}: {size} bytes there, {self._remote.size} expected: another file")
        size = size or self._remote.size
        self._take_up(etag, size)
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        idle, self._errors, self._moving = True, [], {}
        try:
            if ranges:
                os.ftruncate(descriptor, size)
                idle = self._in_ranges(descriptor, size)
            else:
                retrying(self._limits, lambda: self._in_one(descriptor, size), self._sleep)
        finally:
            if idle:  # else a thread that hangs in a read might still write; the process is ending
                os.close(descriptor)

    def _probe(self) -> tuple[str, int, bool]:
        """ETag, size (0: unknown) and whether the server gives ranges, by asking for one byte."""
        with self._web.open("GET", self._remote.url, {**self._remote.headers, "Range": "bytes=0-0"}) as answer:
            if answer.status_code == 206:
                total = answer.headers.get("content-range", "").rpartition("/")[2]
                if total.isdigit():
                    return answer.headers.get("etag", ""), int(total), True
            length = answer.headers.get("content-length", "")
            whole = length.isdigit() and answer.status_code == 200
            return answer.headers.get("etag", ""), int(length) if whole else 0, False

    def _take_up(self, etag: str, size: int) -> None:
        """Go on from the state on disk if it is about this file, else begin anew."""
        remote, old = self._remote, load_state(self._state_file)
        key = remote.sha256 or remote.url
        same = (
            old.get("key") == key and old.get("size") == size and old.get("segment") == self._limits.segment
            and isinstance(old.get("done"), list) and self._part.is_file()
        )  # fmt: skip
        if same and old.get("url") == remote.url and old.get("etag") != etag:
            same = False
        if not same:
            self.discard()
            old = {"done": []}
        # Another source of the same sha256 may go on where the first one stopped; the hash decides at the end.
        self._state = {
            "key": key, "url": remote.url, "etag": etag, "size": size, "segment": self._limits.segment,
            "done": sorted({index for index in old["done"] if type(index) is int and index >= 0}),
        }  # fmt: skip

    def _in_ranges(self, descriptor: int, size: int) -> bool:
        """Fetch the missing segments. Returns whether all threads have ended."""
        segment = self._limits.segment
        finished = set(self._state["done"])
        todo = deque(index for index in range(-(-size // segment)) if index not in finished)
        self._tell()
        threads = [
            threading.Thread(target=self._work, args=(descriptor, todo, size), daemon=True)
            for _ in range(min(self._jobs, len(todo)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # short, so that Ctrl-C gets through
        except BaseException:
            self._stop.set()
            for thread in threads:
                thread.join(1.0)
            raise
        if self._errors:
            raise next((e for e in self._errors if isinstance(e, _Changed)), self._errors[0])
        return not any(thread.is_alive() for thread in threads)

    def _work(self, descriptor: int, todo: deque[int], size: int) -> None:
        """One thread: segments until none is left, one fails, or another thread failed."""
        while todo and not self._errors and not self._stop.is_set():
            try:
                index = todo.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._segment(descriptor, index, size)
            except Stopped:
                return
            except Exception as error:  # raised again by the thread that waits for us
                self._errors.append(error)
                return

    def _segment(self, descriptor: int, index: int, size: int) -> None:
        at = index * self._limits.segment
        end = min(at + self._limits.segment, size)
        failures = 0
        while at < end:
            before = at
            try:
                for chunk in self._range(at, end):
                    os.pwrite(descriptor, chunk, at)
                    at += len(chunk)
                    self._moving[index] = at - index * self._limits.segment
                    self._tell()
                if at < end:
                    raise _Transient(f"{urlsplit(self._remote.url).hostname} ends the connection early")
            except _Transient as error:
                # A few bytes an attempt would go on for hours: only a good piece counts as going well.
                failures = 1 if at - before >= self._limits.min_bytes else failures + error.cost
                if failures >= self._limits.attempts:
                    raise SourceError(f"{error}, {failures} times in a row") from error
                self._sleep(max(error.after_s, pause(self._limits, failures)))
        with self._lock:
            self._moving.pop(index, None)
            self._state["done"].append(index)
            save_state(self._state_file, self._state)

    def _range(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes from start up to end, or fewer."""
        headers = {**self._remote.headers, "Range": f"bytes={start}-{end - 1}"}
        etag = self._state["etag"]
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
        with self._web.open("GET", self._remote.url, headers) as answer:
            if answer.status_code != 206 or (etag and answer.headers.get("etag", etag) != etag):
                raise _Changed
            if not answer.headers.get("content-range", "").replace("=", " ").startswith(f"bytes {start}-"):
                raise SourceError(f"{self._remote.url}: answers with another range than asked for")
            yield from self._guarded(answer, end - start)

    def _guarded(self, answer: "httpx2.Response", limit: int) -> Iterator[bytes]:
        """The body, not a byte more than `limit` (0: no limit), and not slower than the limits allow."""
        seen, marked, since = 0, 0, time.monotonic()
        for chunk in answer.iter_raw():
            if self._stop.is_set() or self._errors:
                raise Stopped
            seen += len(chunk)
            if limit and seen > limit:
                raise SourceError(f"{self._remote.url}: sends more than it announced")
            now = time.monotonic()
            if now - since > self._limits.window_s:
                if seen - marked < self._limits.min_bytes:
                    raise _Transient(f"{urlsplit(self._remote.url).hostname} has all but stopped sending", cost=2)
                marked, since = seen, now
            yield chunk

    def _in_one(self, descriptor: int, size: int) -> None:
        """The whole file in one stream, from its first byte."""
        os.ftruncate(descriptor, 0)
        at = 0
        with self._web.open("GET", self._remote.url, self._remote.headers) as answer:
            for chunk in self._guarded(answer, size):
                os.pwrite(descriptor, chunk, at)
                at += len(chunk)
                self._report(at)
        if size and at < size:
            raise _Transient(f"{urlsplit(self._remote.url).hostname} ends the connection early")

    def _tell(self) -> None:
        segment, size = self._limits.segment, self._state["size"]
        done = list(self._state["done"])
        whole = sum(min(segment, size - index * segment) for index in done)
        self._report(whole + sum(list(self._moving.values())))

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped
