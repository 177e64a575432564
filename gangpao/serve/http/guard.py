"""Who may talk to the server, before anything else looks at a request: pure ASGI, no framework in between.

    Host       must be a name of this machine or an allowed one, else a web page could reach us by DNS rebinding
    Origin     a page of another site is refused, unless allowed (--allow-origin); CORS headers only for allowed ones
    key        with API keys every route answers 401 without one, but /health (and static files that carry no data)
    body       bounded in size and in time

It also gives every request an id, adds security headers that a response does not have yet, and turns what slipped through
every handler into a 500 without a word about its inside. What it gives up: requests are not counted by client; fairness is
the queue's business.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gangpao.serve.http.access import Access, Listen, client_of_key
from gangpao.serve.http.errors import ApiError, ErrorForm, form_for
from gangpao.serve.http.metrics import Metrics
from gangpao.serve.http.stream import ClientGone, Json

log = logging.getLogger("gangpao.serve")

BODY_S = 60.0
PUBLIC = frozenset({"/health"})
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_EXPOSED = "x-request-id, retry-after, retry-after-ms, x-should-retry"


def hosts_of(bound: str, allowed: Iterable[str]) -> frozenset[str]:
    """Names that a Host header may have: this machine's, the address that is bound, and the allowed ones; in lower case, without
    a port."""
    name = f"[{bound}]" if ":" in bound and not bound.startswith("[") else bound
    return frozenset(h.strip().lower() for h in (*LOOPBACK, name, *allowed))


class Guard:
    """The outermost layer around an ASGI application. forms: how the APIs behind it say errors. public: paths that need no key,
    exact, or prefixes that end in "/"."""

    def __init__(
        self,
        app: ASGIApp,
        listen: Listen,
        access: Access,
        metrics: Metrics,
        forms: Sequence[ErrorForm] = (),
        *,
        public: frozenset[str] = PUBLIC,
    ) -> None:
        self._app = app
        self._forms = forms
        self._listen = listen
        self._access = access
        self._metrics = metrics
        self._public = public
        self._hosts = hosts_of(listen.host, access.allow_hosts)
        self._keys = [hashlib.sha256(k.encode()).digest() for k in access.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        origin = headers.get("origin")
        seen_by = origin if origin and self._allowed(origin) else None
        out = _Sender(send, request_id, seen_by, self._metrics, form_for(scope["path"], self._forms))
        began = time.perf_counter()
        try:
            await self._serve(scope, headers, _Receiver(receive, self._access.max_body), out)
        except ClientGone:
            log.debug("%s: the client left", request_id)
        except ApiError as error:
            await out.error(error, scope, receive)
        except Exception:
            log.exception("%s %s failed (request %s)", scope["method"], _path(scope), request_id)
            await out.error(
                ApiError(500, f"the server failed at this request; its log says why ({request_id})"), scope, receive
            )
        finally:
            if self._access.log_requests:
                seconds = time.perf_counter() - began
                log.info("%s %s %s, %.3f s (%s)", scope["method"], _path(scope), out.status or "-", seconds, request_id)
        return None

    async def _serve(self, scope: Scope, headers: Headers, receive: "_Receiver", send: "_Sender") -> None:
        self._check_host(headers)
        origin = headers.get("origin")
        if origin is not None and not self._allowed(origin) and not self._same(origin, headers):
            raise ApiError(
                403, "this web page's origin is not allowed here (--allow-origin)", code="origin_not_allowed"
            )
        if scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            return await send.preflight(headers.get("access-control-request-headers", ""))
        state = scope.setdefault("state", {})
        state["client"] = self._client(scope, headers)
        state["request_id"] = send.request_id
        receive.check_length(headers)
        return await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            raise ApiError(400, "the request needs one Host header that is a host name", code="bad_host")
        name = match[1].lower()
        if name in self._hosts or (self._listen.any_address and _is_address(name)):
            return
        raise ApiError(
            403, f"this server does not answer to the name {name[:100]} (--allow-host)", code="host_not_allowed"
        )

    def _allowed(self, origin: str) -> bool:
        return origin in self._access.allow_origins or "*" in self._access.allow_origins

    def _same(self, origin: str, headers: Headers) -> bool:
        return origin == f"{'https' if self._listen.tls else 'http'}://{headers['host']}"

    def _client(self, scope: Scope, headers: Headers) -> str:
        """Whose request it is. Raises ApiError (401) for a wrong or missing key where one is needed."""
        peer = scope["client"][0] if scope.get("client") else ""
        if not self._keys:
            return peer
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time says nothing about which one was nearly right.
        if sum(hmac.compare_digest(digest, key) for key in self._keys):
            return client_of_key(digest)
        path = scope["path"]
        if path in self._public or any(p.endswith("/") and p != "/" and path.startswith(p) for p in self._public):
            return peer
        raise ApiError(
            401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )  # fmt: skip


def _path(scope: Scope) -> str:
    """A path as it was sent: one line of ASCII, whatever is in it."""
    return str(scope.get("raw_path", b"").decode("latin-1")[:200])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class _Receiver:
    """A request's body, with an end to its size and to the time it may take."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._left = limit
        self._until: float | None = time.monotonic() + BODY_S

    def check_length(self, headers: Headers) -> None:
        text = headers.get("content-length", "0")
        if text.isascii() and text.isdigit() and int(text[:20]) > self._limit:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than the {self._limit} bytes this server takes", code="body_too_large"
        )

    async def __call__(self) -> Message:
        if self._until is None:  # the body is here; what is waited for now is the client's leaving
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_S:.0f} s", code="body_timeout") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise self._too_large()
            if not message.get("more_body", False):
                self._until = None
        return message


class _Sender:
    """Adds our headers to a response and counts it."""

    def __init__(self, send: Send, request_id: str, origin: str | None, metrics: Metrics, form: ErrorForm) -> None:
        self._form = form
        self.request_id = request_id
        self._send = send
        self._origin = origin
        self._metrics = metrics
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._metrics.status(self.status)
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            headers.add_vary_header("Origin")
            if self._origin is not None:
                headers["access-control-allow-origin"] = self._origin
                headers["access-control-expose-headers"] = _EXPOSED
                headers["cross-origin-resource-policy"] = "cross-origin"
        await self._send(message)

    async def preflight(self, asked: str) -> None:
        """Say to a browser what a page of an allowed origin may send. Never credentials: keys go into a header."""
        headers = {
            "access-control-allow-methods": "GET, POST, HEAD, OPTIONS",
            "access-control-allow-headers": asked[:2000] or "authorization, content-type, x-api-key",
            "access-control-max-age": "600",
        }
        status = 204 if self._origin is not None else 403
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()] if self._origin else []
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": b""})

    async def error(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """The error's body, unless the response has begun already: then the connection just ends."""
        if not self.status:
            response = Json(self._form.body(error), error.status, headers=error.headers)
            await response(scope, receive, self)
