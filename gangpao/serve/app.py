"""The application: routes and guard around a Server, its life cycle, and a way to run it in a thread.

    make_app(server)    the ASGI application, for uvicorn
    listen(where, ...)  a bound socket, so that a port in use is told before a model is loaded
    running(server)     a server in a thread of this process, for tests and benchmarks

The first model is loaded in the background as soon as the server listens; until then /health says "loading".
"""

import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gangpao.serve.api import openai, openapi
from gangpao.serve.api.dialects import DIALECTS, FORMS, body_for
from gangpao.serve.http import guard
from gangpao.serve.http.access import Access, Listen, check_binding
from gangpao.serve.http.connection import Protocol
from gangpao.serve.http.errors import ApiError
from gangpao.serve.http.stream import ClientGone, Json
from gangpao.serve.http.tls import Files, addresses
from gangpao.serve.pages import routes
from gangpao.serve.server import Server

log = logging.getLogger("gangpao.serve")
KEEP_ALIVE_S = 75  # longer than the pools of usual clients keep a connection, so that it is they who close it
GRACE_S = 30.0
THREADS = 32
CLOSE_S = 5.0  # for what the grace period left


def make_app(
    server: Server, *, on_ready: Callable[[], None] | None = None, on_failed: Callable[[str], None] | None = None
) -> ASGIApp:
    """The application of a server. on_ready is called when the first model is loaded, on_failed with the reason if not."""
    settings = server.settings

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Threads wait here for a hostile chat template; there must be some left for the others.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "prepare"))
        tasks = [
            asyncio.create_task(server.models.start(on_ready, on_failed)),
            asyncio.create_task(server.models.sweep()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.models.close(CLOSE_S)

    app = Starlette(
        routes=[*openapi.routes(DIALECTS), *(r for module in (*DIALECTS, routes) for r in module.routes(server))],
        lifespan=lifespan,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientGone: _client_gone,
            Exception: _our_bug,
        },
    )
    app.state.server = server
    made: ASGIApp = _ShortPaths(app) if settings.short_paths else app
    return guard.Guard(made, settings, settings, server.metrics, FORMS, public=guard.PUBLIC | routes.PUBLIC)


class _ShortPaths:
    """Paths of the API without /v1, and with two of it, as clients make them from an address that somebody else had in mind."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].replace("/v1/v1/", "/v1/", 1)
            known = any(path == name or path.startswith(f"{name}/") for name in _UNDER_V1)
            scope = {**scope, "path": f"/v1{path}" if known else path}
        await self._app(scope, receive, send)


_UNDER_V1 = ("/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/models")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Json(body_for(request.scope["path"], error), error.status, headers=error.headers)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the figures; there is nobody to read it


async def _our_bug(request: Request, error: Exception) -> Response:
    found = ApiError(500, f"the server failed at this request; its log says why ({request.state.request_id})")
    return Json(body_for(request.scope["path"], found), found.status)  # the guard writes the log


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        found = openai.not_found(request.url.path)
    else:
        found = ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")
    return Json(body_for(request.scope["path"], found), error.status_code, headers=dict(error.headers or {}))


def listen(where: Listen, access: Access) -> socket.socket:
    """A socket bound to an address (port 0: a free one). Raises ValueError where that is not possible, or others could reach it
    without a key."""
    check_binding(where, access)
    host = where.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY only then, and without it every answer waits 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, where.port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {where.port} is in use by another program: take another one with --port") from None
        raise ValueError(f"cannot listen on {where.host}:{where.port}: {error.strerror}") from None
    bound.set_inheritable(True)
    return bound


def url_of(host: str, bound: socket.socket, *, tls: bool) -> str:
    """The URL to open for a socket bound to `host`; where that is all addresses, the one that others on the network use."""
    host = host.strip("[]")
    if host in ("0.0.0.0", "::"):
        host = next(iter(addresses()), "127.0.0.1")
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def uvicorn_config(app: ASGIApp, *, grace_s: float = GRACE_S, cert: Files | None = None) -> uvicorn.Config:
    """How uvicorn runs us: one process, asyncio and h11, our own log."""
    pair: dict[str, Any] = {"ssl_certfile": str(cert.cert), "ssl_keyfile": str(cert.key)} if cert else {}
    return uvicorn.Config(
        app, http=Protocol, loop="asyncio", ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(grace_s)), **pair,
    )  # fmt: skip


class _InThread(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # signals belong to the main thread
        yield


@contextlib.contextmanager
def running(
    server: Server, *, ready: bool = True, wait_s: float = 60.0, grace_s: float = 5.0, cert: Files | None = None
) -> Iterator[str]:
    """Run a server in a thread on its address and give its base URL; when `ready`, after its first model is loaded (or failed to).

    cert: what it speaks TLS with, where its settings say tls.
    """
    bound = listen(server.settings, server.settings)
    runner = _InThread(uvicorn_config(make_app(server), grace_s=grace_s, cert=cert))
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve(sockets=[bound])), name="server")
    thread.start()
    try:
        until = time.monotonic() + wait_s
        while not runner.started or (ready and server.models.state == "loading"):
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError(f"the server did not start within {wait_s:.0f} s; the log says why")
            time.sleep(0.01)
        yield url_of(server.settings.host, bound, tls=server.settings.tls)
    finally:
        runner.should_exit = True
        thread.join()
        bound.close()
