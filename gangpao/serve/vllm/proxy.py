"""A reverse proxy for one server on this machine that speaks OpenAI's API but does not guard itself as ours does.

The guard (host names, keys, sizes) stands in front; what passes it is sent on, and the answer comes back as it comes,
chunk by chunk. A client that hangs up closes the connection behind, too, which is how the other server learns to stop.
Only paths of the API pass: what such a server has for its administration (sleep, profiles, weights) often asks for no key.

What it gives up: a request is read whole before it is sent on; no WebSockets; no caching.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gangpao.serve.api.dialects import body_for
from gangpao.serve.http.errors import ApiError, retry_headers
from gangpao.serve.http.stream import ClientGone, Json, error_event, watched

PASSED = re.compile(r"/v[12]/[A-Za-z0-9._/-]+|/(?:tokenize|detokenize|version|metrics|pooling|classify|score|rerank)")
# Headers that belong to one connection, or that the guard and the client here set anew.
_DROPPED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length", "authorization", "x-api-key", "cookie", "expect", "date", "server",
}  # fmt: skip
CONNECT_S = 5.0


class Backend:
    """The server behind: its address (http://127.0.0.1:PORT), the key it wants, and whether it is ready to answer."""

    def __init__(self, url: str, key: str, ready: Callable[[], bool]) -> None:
        self.url = httpx2.URL(url)
        self.ready = ready
        self._key = key
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        # No end to a silence: a long prompt may wait for its turn; the client decides how long.
        timeout = httpx2.Timeout(None, connect=CONNECT_S)
        self._http = httpx2.AsyncClient(trust_env=False, limits=limits, timeout=timeout)

    async def healthy(self) -> bool:
        """Whether it says so itself."""
        try:
            response = await self._http.get(self.url.copy_with(path="/health"), timeout=CONNECT_S)
        except httpx2.TransportError:
            return False
        return response.status_code == 200

    def request(self, scope: Scope, body: bytes) -> httpx2.Request:
        """The request to send on. Raises ApiError (404) for a path that does not pass."""
        path = scope["path"]
        if not PASSED.fullmatch(path) or ".." in path or "//" in path or scope["raw_path"].decode("latin-1") != path:
            raise ApiError(404, f"there is no {path[:100]} here", code="not_found")
        kept = [(k, v) for k, v in Headers(scope=scope).raw if k.decode("latin-1") not in _DROPPED]
        kept.append((b"authorization", f"Bearer {self._key}".encode("ascii")))
        url = self.url.copy_with(
            raw_path=path.encode("ascii") + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        )
        return self._http.build_request(scope["method"], url, headers=kept, content=body)

    @asynccontextmanager
    async def answer(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        """The open response. Raises ApiError (502) when there is none."""
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.TransportError as error:
            raise ApiError(
                502, f"the server behind does not answer ({type(error).__name__})", code="bad_gateway"
            ) from None
        try:
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def application(backend: Backend, *own: Route) -> Starlette:
    """/health and `own` routes, and the paths of the API sent on to the server behind. To be put behind a Guard."""

    async def health(request: Request) -> Response:
        if not backend.ready():
            return Json({"status": "loading"}, 503, headers=retry_headers(5))
        if not await backend.healthy():
            return Json({"status": "the server behind does not answer"}, 503, headers=retry_headers(5))
        return Json({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await backend.close()

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return Json(body_for(request.scope["path"], error), error.status, headers=error.headers)

    routes = [Route("/health", health), *own, Mount("/", app=_sender(backend))]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={ApiError: failed})


def _sender(backend: Backend) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not backend.ready():
            raise ApiError(503, "the model is being loaded", code="loading", headers=retry_headers(5))
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            raise ClientGone from None
        await watched(request, _relay(backend, backend.request(scope, body), send))

    return app


async def _relay(backend: Backend, request: httpx2.Request, send: Send) -> None:
    async with backend.answer(request) as response:
        headers = [(k.lower(), v) for k, v in response.headers.raw if k.lower().decode("latin-1") not in _DROPPED]
        if "content-length" in response.headers:
            headers.append((b"content-length", response.headers["content-length"].encode("latin-1")))
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        try:
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx2.TransportError as error:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise ApiError(502, "the server behind broke off") from None  # the guard ends the connection
            why = ApiError(502, f"the server behind broke off ({type(error).__name__})", code="bad_gateway")
            await send({"type": "http.response.body", "body": b"\n\n" + error_event(why), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
