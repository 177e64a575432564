"""What the faces of other APIs have in common: a chat's chunks as plain events, and errors in their own form.

An answer is Started, then Words, Called and Argument in the order they come, then Ended. A face turns each into its own events;
none of them looks into OpenAI's chunks.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from gangpao.serve import chat_core
from gangpao.serve.errors import ApiError
from gangpao.serve.server import Server
from gangpao.serve.stream import Json

Body = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]


class Started(NamedTuple):
    """The request was accepted by this model."""

    model: str


class Words(NamedTuple):
    """Some text of the answer."""

    text: str


class Called(NamedTuple):
    """A call began; its arguments come in pieces."""

    id: str
    name: str


class Argument(NamedTuple):
    """A piece of the arguments of the last call, which are JSON."""

    text: str


class Ended(NamedTuple):
    """The answer is over. reason, usage and timings are those of the chat."""

    reason: str
    usage: Body
    timings: Body


Event = Started | Words | Called | Argument | Ended


async def events(server: Server, chat: Body, client: str) -> AsyncGenerator[Event, None]:
    """A chat request's answer. Raises ApiError as chat_core.stream does; closing it cancels the answer."""
    asked = {**chat, "stream": True, "stream_options": {"include_usage": True}, "n": None}
    reason = "stop"
    async with contextlib.aclosing(chat_core.stream(server, asked, client)) as chunks:
        started = False
        async for chunk in chunks:
            if not started:
                started = True
                yield Started(chunk["model"])
            if not chunk["choices"]:
                yield Ended(reason, chunk["usage"], chunk["timings"])
                return
            choice = chunk["choices"][0]
            reason = choice["finish_reason"] or reason
            for event in _said(choice["delta"]):
                yield event


def _said(delta: Body) -> list[Event]:
    out: list[Event] = [Words(delta["content"])] if delta.get("content") else []
    for call in delta.get("tool_calls", ()):
        function = call["function"]
        if "name" in function:
            out.append(Called(call["id"], function["name"]))
        if function["arguments"]:
            out.append(Argument(function["arguments"]))
    return out


def with_errors(handler: Handler, body_of: Callable[[ApiError], Body]) -> Handler:
    """A route whose ApiErrors are answered in the form that `body_of` gives them."""

    @functools.wraps(handler)
    async def route(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return Json(body_of(error), error.status, headers=error.headers)

    return route


def given(**fields: Any) -> Body:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
