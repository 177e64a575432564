"""What the dialects have in common: a response written from an answer's events, and notes of what was left out.

A dialect is a module with OPERATIONS (its POST routes, for the description), ERRORS (how it says an error) and routes(server).
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from gangpao.serve.answers.events import Event
from gangpao.serve.http.errors import ApiError
from gangpao.serve.http.stream import Json, event_stream, watched

Body = dict[str, Any]
MAX_NOTES = 20


class Writer(Protocol):
    """An answer in a dialect's objects, as it grows."""

    media_type: str

    def write(self, event: Event) -> Iterable[Body]:
        """Take an event in; the objects that a stream sends for it."""

    def whole(self) -> Body:
        """The answer as one object, when it is over."""

    def frame(self, data: Body) -> bytes:
        """An object as it is sent."""

    def error(self, error: ApiError) -> bytes:
        """What is sent of an answer that failed while it was streaming."""

    def last(self) -> bytes:
        """What ends a stream; may be nothing."""


async def respond(request: Request, answer: AsyncGenerator[Event, None], writer: Writer, *, stream: bool) -> Response:
    """The response to a request: the writer's objects as they come, or the whole. A client that hangs up ends the answer."""
    if stream:
        return await event_stream(request, _frames(answer, writer), on_error=writer.error, media_type=writer.media_type)
    return Json(await watched(request, _whole(answer, writer)))


async def _frames(answer: AsyncGenerator[Event, None], writer: Writer) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer):
        async for event in answer:
            for data in writer.write(event):
                yield writer.frame(data)
    if last := writer.last():
        yield last


async def _whole(answer: AsyncGenerator[Event, None], writer: Writer) -> Body:
    async with aclosing(answer):
        async for event in answer:
            for _ in writer.write(event):
                pass
    return writer.whole()


class Notes:
    """What of a request cannot be used here, in sentences for the log and for the answer."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._more = 0

    def add(self, where: str, what: str) -> None:
        """`what` at a place of the request was left out, or read as something else."""
        if len(self._found) < MAX_NOTES:
            self._found.append(f"{where}: {what}"[:200])
        else:
            self._more += 1

    @property
    def all(self) -> tuple[str, ...]:
        """The sentences, the first MAX_NOTES of them."""
        return (*self._found, f"and {self._more} more") if self._more else tuple(self._found)


def refuse_others(body: Body, ways: Mapping[str, str]) -> None:
    """Raises ApiError (400) for a field of another API that restricts the answer and would do nothing here. ways: what to do."""
    for name, way in ways.items():
        if body.get(name) not in (None, [], ""):
            raise ApiError(400, f"{name}: this API has no such field: {way}", param=name)


def left_out(notes: Iterable[str]) -> Body:
    """The field of an answer that says what of its request was not used; none where all was."""
    found = list(notes)
    return {"gangpao": {"left_out": found}} if found else {}


def given(**fields: Any) -> Body:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
