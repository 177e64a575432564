"""Between HTTP and the answers: JSON in and out, server-sent events, and what happens when a client hangs up.

A dropped connection ends the work at once: a plain request's task is cancelled (watched), a stream's generator is closed
(event_stream), and both cancel the answer in the scheduler. The first frame of a stream is awaited before the status goes
out, so a refused request is a refused request also when it asked for a stream.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gangpao.serve.http import json_bounds
from gangpao.serve.http.errors import PLAIN, ApiError

T = TypeVar("T")
log = logging.getLogger("gangpao.serve")

DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection before it was answered."""


# What other programs take for the end of a line although JSON may hold it: NEL, and Unicode's line and paragraph separators.
_LINE_ENDS = {chr(code): f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def encoded(content: Any) -> bytes:
    """JSON in UTF-8, in one line whoever counts the lines. A half of a surrogate pair, which a client may have sent, goes back as
    the escape it came as."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign, escape in _LINE_ENDS.items():
        text = text.replace(sign, escape)
    return text.encode("utf-8", "backslashreplace")


class Json(JSONResponse):
    """A JSON body."""

    def render(self, content: Any) -> bytes:
        return encoded(content)


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event; anything but a string is written as JSON."""
    text = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else encoded(data)
    head = f"event: {event}\n" if event else ""
    return b"%bdata: %b\n\n" % (head.encode(), text)


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients expect it."""
    return sse(PLAIN.body(error))


async def read_json(request: Request) -> dict[str, Any]:
    """The request's body, which must be one JSON object. Raises ApiError (400)."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    try:
        json_bounds.check(raw, "the body")
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    try:
        found = json_bounds.loads(raw)
    except ValueError as error:  # also what is not UTF-8
        raise ApiError(400, f"the body is not JSON: {error}"[:300], code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(found).__name__}", code="invalid_json")
    return found


def client_of(request: Request) -> str:
    """Whose turn a request uses up: the key it came with, else where it came from."""
    client = getattr(request.state, "client", "")
    return client or (request.client.host if request.client else "")


async def watched(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up (ClientGone)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _stop(task, gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and wait until it has ended; what a cancelled task raises last is of no interest."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, ApiError | ClientGone):
            log.debug("a cancelled request ended with %r", result)


async def event_stream(
    request: Request,
    frames: AsyncGenerator[bytes, None],
    *,
    on_error: Callable[[ApiError], bytes] = error_event,
    media_type: str = "text/event-stream",
) -> Response:
    """A response that sends `frames` as they come. An ApiError before the first frame is raised, later ones are sent as
    on_error's frame; a client that hangs up closes `frames` at once."""
    try:
        first = await watched(request, _first(frames))
    except BaseException:
        await frames.aclose()
        raise
    return _Frames(first, frames, on_error, media_type)


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames, b"")


class _Frames(Response):
    def __init__(
        self, first: bytes, frames: AsyncGenerator[bytes, None], on_error: Callable[[ApiError], bytes], media_type: str
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._frames = frames
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _stop(pump, gone)
            await self._frames.aclose()

    async def _pump(self, send: Send) -> None:
        async def put(frame: bytes) -> None:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
            await asyncio.sleep(0)  # when many are ready at once: others have their turn, and a hang-up is heard

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await put(self._first)
        try:
            async for frame in self._frames:
                await put(frame)
        except ApiError as error:
            await put(self._on_error(error))
        except OSError:
            return  # the connection is gone
        except Exception:
            log.exception("a stream failed")
            await put(self._on_error(ApiError(500, "the server failed at this request; its log says why")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
