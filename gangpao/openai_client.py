"""An OpenAI-compatible server as a client sees it: one address, its models, requests, server-sent events, what they used.

Server sends requests and turns every way to fail into one line that says what to do (RemoteError). A server that is busy
is asked again when it says so (Retry-After), and meanwhile by no other thread; how long and how often says a Patience.
Nothing that comes from it is trusted to be short, well formed or fit for a terminal: bodies and events have bounds, and
control characters are taken out of whatever is shown. A key stands in a header and nowhere else: it is taken out of
whatever a server says, and so is a password of the address.

`ask` is safe to call from several threads, and `each` calls something for many things at once.

What it gives up: no redirects (a key would follow them).
"""

import json
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2

from gangpao.machine import is_loopback
from gangpao.units import plain

CONNECT_S = 5.0
# A small machine may read a long prompt for minutes before its first word.
SILENCE_S = 600.0
RETRIED = frozenset({408, 429, 502, 503, 504})
NO_LIST = (404, 405, 501)  # not every server lists its models
MAX_EVENT = 16 << 20
MAX_BODY = 16 << 20
SHOWN = 400


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for. wait_s: seconds of waiting in all for one request. broken: how often a request is sent
    again whose connection broke or whose server failed in between (a person at a terminal sees that at once, and decides)."""

    silence_s: float = SILENCE_S
    wait_s: float = 120.0
    broken: int = 0


KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Flags:
    """What a command calls the options that messages name. environment: whether KEY_VARIABLE holds a key where none is given; not
    where a key that somebody set for one server must not go to another."""

    url: str = "--connect"
    key: str = "--api-key"
    model: str = "--model"
    environment: bool = True


class RemoteError(ValueError):
    """The server refused, or broke off; in one line, whatever it sent. status is 0 where there was no answer, code its own word."""

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(" ".join(plain(message).split()))
        self.status = status
        self.code = code


class Server:
    """An OpenAI-compatible server at an address, with its key and how to check its certificate.

    on_wait gets a sentence when a busy server is waited for.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        verify: ssl.SSLContext | bool,
        *,
        patience: Patience = Patience(),
        flags: Flags = Flags(),
        on_wait: Callable[[str], None] = lambda _: None,
        connections: int = 10,
    ) -> None:
        given = httpx2.URL(address(url, flags.url))
        # A password of the address goes into a header; the address is shown, logged and written.
        self.base = str(given.copy_with(userinfo=b""))
        here = is_loopback(given.host)
        self.ours = False  # whether it is gangpao, once it has listed its models
        self.withheld = False
        if api_key is None and flags.environment and not given.userinfo:
            api_key = os.environ.get(KEY_VARIABLE) or None
            # A key of the environment may be a costly one, and plain HTTP shows it to everyone on the way.
            self.withheld = bool(api_key) and not here and self.base.startswith("http:")
            api_key = None if self.withheld else api_key
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that no key has: copy it again")
        self.keyed = api_key is not None or bool(given.userinfo)
        headers = {"Accept": "text/event-stream, application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._secrets = [secret for secret in (api_key, given.password) if secret]
        self._patience, self._flags, self._on_wait = patience, flags, on_wait
        self._not_before = 0.0  # a busy server is left alone until then, by all threads
        self._lock = threading.Lock()
        # A proxy of the environment cannot reach this machine's loopback.
        self._http = httpx2.Client(
            headers=headers,
            auth=(given.username, given.password) if given.userinfo and api_key is None else None,
            timeout=httpx2.Timeout(patience.silence_s, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=verify,
            trust_env=not here,
        )

    def models(self) -> list[str]:
        """Names that /models lists, without other names of the same models (`root` says whose)."""
        body = self._whole("GET", "/models", None)
        listed = body.get("data") if isinstance(body, dict) else None
        if not isinstance(listed, list):
            raise RemoteError(f"{self.base}/models is not OpenAI's list: is this the address of such a server?")
        models = [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
        self.ours = any(m.get("owned_by") == "gangpao" for m in models)
        roots = {m["id"]: m.get("root") for m in models}
        return [plain(name) for name, root in roots.items() if root == name or root not in list(roots)]

    def pick(self, model: str | None) -> str:
        """The name to ask for: the one given, or the only one. Raises RemoteError that lists the names when there is a choice."""
        try:
            names = self.models()
        except RemoteError as error:
            if model is not None and error.status in NO_LIST:
                return model
            raise
        if model is not None:
            return model  # an alias may not be in the list; the server knows
        if len(names) == 1:
            return names[0]
        if not names:
            raise RemoteError(f"{self.base} lists no model: name one with {self._flags.model}")
        raise RemoteError(
            f"{self.base} has {len(names)} models, choose with {self._flags.model}: {', '.join(names[:50])}"
        )

    def open(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        """An open response (status 200) to a request, to read events from; the caller closes it."""
        with self._naming_models():
            return self._send("POST", path, body)

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a whole answer. Raises RemoteError."""
        with self._naming_models():
            answer = self._whole("POST", path, body)
        if isinstance(answer, dict) and answer.get("error"):  # some gateways say it with a 200
            said, code = said_in(json.dumps(answer).encode())
            raise RemoteError(f"{self.base} answers: {self._without_secrets(said)}", 200, code)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def _naming_models(self) -> Iterator[None]:
        """Where something was not found, the error says what there is."""
        try:
            yield
        except RemoteError as error:
            if error.status == 404:
                raise RemoteError(f"{error}{self._known()}", 404, error.code) from None
            raise

    def _known(self) -> str:
        try:
            names = self.models()
        except RemoteError:
            return f" (and {self.base}/models does not answer: is this an OpenAI-compatible address?)"
        return f"; the server has {', '.join(names[:50]) or 'no model'}"

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """The JSON of an answer, asked for again where it broke off in between."""
        left = self._patience.broken
        while True:
            response = self._send(method, path, body)
            try:
                with closing(response):
                    return parse(read_body(response))
            except RemoteError:
                if left == 0:
                    raise
                time.sleep(_backoff(self._patience.broken - left))
                left -= 1

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        """The response when it is a 200; waits for a busy server. Raises RemoteError for everything else."""
        waited, tries, broken = 0.0, 0, 0
        self._wait_for_turn()
        while True:
            try:
                request = self._http.build_request(method, self.base + path, json=body)
                response = self._http.send(request, stream=True)
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                # Nobody there is no matter of patience; a broken connection is.
                if isinstance(error, httpx2.ConnectError | httpx2.InvalidURL) or broken == self._patience.broken:
                    raise RemoteError(self._unreached(error)) from None
                time.sleep(_backoff(broken))
                broken += 1
                continue
            if response.status_code == 200:
                self._not_before = 0.0
                return response
            with closing(response):
                refusal = self._refusal(response)
            if response.status_code >= 500 and response.status_code not in RETRIED and broken < self._patience.broken:
                time.sleep(_backoff(broken))
                broken += 1
                continue
            wait = pause(response, _backoff(tries)) if refusal.code != "insufficient_quota" else None
            if wait is None:
                raise refusal
            waited, tries = waited + wait, tries + 1
            if waited > self._patience.wait_s:
                raise RemoteError(f"{refusal} (busy; it asks to wait {wait:.0f} s more)", refusal.status, refusal.code)
            self._on_wait(f"the server is busy, asking again in {wait:.1f} s (Ctrl-C gives up)")
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + wait)
            time.sleep(wait)

    def _wait_for_turn(self) -> None:
        """Sleep while a busy server is to be left alone: another thread heard it say so."""
        wait = self._not_before - time.monotonic()
        if wait > 0:
            time.sleep(wait)

    def _refusal(self, response: httpx2.Response) -> RemoteError:
        """What the server says against a request, with what can be done."""
        status = response.status_code
        said, code = said_in(read_body(response))
        said = self._without_secrets(said)
        if status == 401:
            if self.keyed:
                return RemoteError(f"{self.base} refuses this API key", 401, code)
            hint = f"give it with {self._flags.key}"
            if self.withheld:
                hint += f" ({KEY_VARIABLE} is not sent over plain HTTP to another machine unasked)"
            elif self._flags.environment:
                hint += f", or in {KEY_VARIABLE}"
            return RemoteError(f"{self.base} wants an API key: {hint}", 401, code)
        if 300 <= status < 400:
            said = f"moved to {response.headers.get('location', 'nowhere')}: use that address"
        return RemoteError(f"{self.base} answers {status}: {said or response.reason_phrase}", status, code)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(the key)")
        return text

    def _unreached(self, error: Exception) -> str:
        text = " ".join(str(e) for e in causes(error))
        if isinstance(error, httpx2.ConnectTimeout):
            return f"{self.base} does not answer within {CONNECT_S:.0f} s"
        if isinstance(error, httpx2.ReadTimeout):
            return f"{self.base} sent nothing for {self._patience.silence_s:.0f} s"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return (
                f"the certificate of {self.base} is not trusted ({text.rpartition('failed: ')[2][:80]}): "
                "give the server's certificate with --ca FILE, or --insecure to go without"
            )
        if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text or "UNKNOWN_PROTOCOL" in text:
            return f"{self.base} does not speak TLS: try http://"
        if isinstance(error, httpx2.ConnectError):
            return f"nothing answers at {self.base} ({text[:80]}): is the server running? `gangpao serve` starts ours"
        if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError) and self.base.startswith("http:"):
            return f"{self.base} does not speak plain HTTP ({text[:80] or 'it hung up'}): try https://"
        return f"{self.base}: {text[:SHOWN] or type(error).__name__}"


def _backoff(tries: int) -> float:
    """Seconds before the next try of the same request, where the server says nothing: 1, 2, 4, then 8."""
    return float(min(2**tries, 8))


def address(url: str, flag: str = "--connect") -> str:
    """The address that /chat/completions is appended to: http unless said otherwise, /v1 where there is no path."""
    url = url.strip()
    if "://" not in url:
        url = f"http://{url}"
    shown = f"{flag} {re.sub('//[^/]*@', '//', url)!r:.80}"
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{shown}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{shown}: write an address like http://127.0.0.1:8000 or https://host/v1")
    if parsed.query or parsed.fragment:
        raise ValueError(f"{shown}: an address without ? and #")
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1"))


def pause(response: httpx2.Response, backoff: float) -> float | None:
    """Seconds to wait before the same request again; None when that is pointless. What the server says comes first."""
    told = response.headers.get("x-should-retry", "").lower()
    if told == "false" or (told != "true" and response.status_code not in RETRIED):
        return None
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = response.headers.get(name, "")
        try:
            seconds = float(value) * scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return backoff


def too_long(error: RemoteError) -> bool:
    """Whether a refusal says that the prompt is longer than the context: each server has words of its own."""
    if error.status not in (400, 413, 422):
        return False
    text = f"{error.code} {error}".lower()
    return any(words in text for words in ("context_length", "exceed_context", "context length", "context size"))


def tls(ca: Path | None, insecure: bool) -> ssl.SSLContext | bool:
    """How to check the server's certificate: against the system's authorities, a file, or not at all."""
    if insecure:
        return False
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError:
        raise ValueError(f"--ca {ca}: not a certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"--ca {ca}: {error.strerror}") from None


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event. Comments and other fields are skipped; lines end in LF, CR LF or CR.

    Raises RemoteError for an event larger than MAX_EVENT bytes. An event that the stream ends within still counts.
    """
    data: list[str] = []
    size = 0
    for line in lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data, size = [], 0
            continue
        name, _, value = line.partition(b":")
        if name != b"data":
            continue
        size += len(line)
        if size > MAX_EVENT:
            raise RemoteError(f"the server sent an event of more than {MAX_EVENT >> 20} MiB")
        data.append(value.removeprefix(b" ").decode("utf-8", "replace"))
    if data:
        yield "\n".join(data)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream without their ends. Only LF, CR LF and CR end one: JSON may hold any other separator."""
    rest = bytearray()
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # its CR came with the chunk before and has ended the line already
        after_cr = chunk.endswith(b"\r") or (after_cr and not chunk)
        rest += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, last = bytes(rest).split(b"\n")
        yield from whole
        rest = bytearray(last)
        if len(rest) > MAX_EVENT:
            raise RemoteError(f"the server sent a line of more than {MAX_EVENT >> 20} MiB")
    if rest:
        yield bytes(rest)


def read_body(response: httpx2.Response) -> bytes:
    """The body, up to MAX_BODY bytes. What is wrong with the connection is told as RemoteError."""
    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_BODY:
                raise RemoteError(f"the server sent a body of more than {MAX_BODY >> 20} MiB")
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise RemoteError(f"the server's answer broke off: {error}") from None
    return bytes(body)


def parse(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        raise RemoteError(f"the server sent something that is not JSON: {shown[:SHOWN]!r}") from None


def said_in(body: bytes) -> tuple[str, str]:
    """(message, code) of an error body: OpenAI's, Ollama's or FastAPI's form, or the beginning of whatever it is."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
        title = re.search("<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)  # a proxy's page
        return (title[1] if title else text).strip()[:SHOWN], ""
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return str(error)[:SHOWN], ""
    message = error.get("message") or error.get("detail") or json.dumps(error, ensure_ascii=False)
    code = error.get("code")
    return str(message)[:SHOWN], f"{code if isinstance(code, str) else ''} {error.get('type') or ''}".strip()


def texts_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """Thought and words of a message or its piece. Content is a text, or a list of parts: texts, and thoughts that hold texts."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    words = "".join(_text(part.get("text")) for part in parts if isinstance(part, dict))
    inner = "".join(_text(part.get("thinking")) for part in parts if isinstance(part, dict))
    return _text(thought) + inner, words


def _text(value: Any) -> str:
    """A text, or the texts of a list of parts; nothing for anything else."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""


def whole_number(mapping: Any, name: str, default: int) -> int:
    """A count in an object of a server, or the default where there is none."""
    value = mapping.get(name) if isinstance(mapping, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else default


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the innermost first where it says more."""
    seen: list[BaseException] = []
    while error is not None and len(seen) < 8:
        seen.append(error)
        error = error.__cause__ or error.__context__
    texts: set[str] = set()
    for one in seen:
        if str(one) and str(one) not in texts:
            texts.add(str(one))
            yield one
