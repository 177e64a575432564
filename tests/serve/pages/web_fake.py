"""The real pages in front of an OpenAI endpoint that answers what a test wants, in a thread of this process."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gangpao.serve.http.errors import PLAIN, ApiError
from gangpao.serve.pages import routes
from gangpao.serve.server import Server, Settings
from tests.engine.tiny import write_tiny

TIMINGS = {"decode_tps": 31.25, "ttft_s": 0.2, "yuan": 0.0000213}


@dataclass
class Endpoint:
    """What is answered next. `pieces` are sent one by one; `hold` keeps a stream open behind its last piece."""

    pieces: list[str] = field(default_factory=lambda: ["Hello ", "there."])
    thoughts: list[str] = field(default_factory=list)
    finish: str = "stop"
    hold: bool = False
    fail: tuple[int, dict[str, Any], dict[str, str]] | None = None  # status, error, headers
    key: str = ""
    sees: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    dropped: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def reset(self) -> None:
        """As new, the address left."""
        self.__init__(url=self.url)  # type: ignore[misc]

    def _locked(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "a key, please", "code": "invalid_api_key"}}, 401)
        return None

    async def models(self, request: Request) -> Response:
        modes = ["text", "image"] if self.sees else ["text"]
        data = [
            {"id": name, "object": "model", "architecture": {"input_modalities": modes}} for name in ("toy", "other")
        ]
        return self._locked(request) or JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        if locked := self._locked(request):
            return locked
        self.requests.append(json.loads(await request.body()))
        if self.fail:
            status, error, headers = self.fail
            return JSONResponse({"error": error}, status, headers=headers)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n".encode()

        try:
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            for name, pieces in (("reasoning_content", self.thoughts), ("content", self.pieces)):
                for piece in pieces:
                    yield event([{"index": 0, "delta": {name: piece}, "finish_reason": None}])
                    await asyncio.sleep(0.01)
            while self.hold:
                await asyncio.sleep(0.01)
            yield event([{"index": 0, "delta": {}, "finish_reason": self.finish}], timings=TIMINGS)
            yield event([], usage={"prompt_tokens": 9, "completion_tokens": 12}, timings=TIMINGS)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.dropped.set()
            raise


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(PLAIN.body(error), error.status, headers=error.headers)


class _InThread(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(folder: Any) -> Iterator[Endpoint]:
    """The pages and an endpoint on a free port."""
    endpoint = Endpoint()
    server = Server(Settings({"tiny": write_tiny(folder / "tiny.gguf")}))
    app = Starlette(
        routes=[
            Route("/v1/models", endpoint.models),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
            *routes.routes(server),
        ],
        exception_handlers={ApiError: _error},
    )
    bound = socket.create_server(("127.0.0.1", 0))
    runner = _InThread(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve(sockets=[bound])))
    thread.start()
    while not runner.started:
        threading.Event().wait(0.01)
    endpoint.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        yield endpoint
    finally:
        endpoint.hold = False
        runner.should_exit = True
        thread.join()
        bound.close()
