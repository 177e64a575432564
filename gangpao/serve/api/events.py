"""What the faces of other APIs have in common: a chat's chunks as plain events, and errors that name their fields.

An answer is Started, then Thought, Words, Called and Argument in the order they come, then Ended. A face turns each into its own
events; none of them looks into OpenAI's chunks.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, NamedTuple

from gangpao.serve.api import chat as chat_module
from gangpao.serve.http.errors import ApiError
from gangpao.serve.server import Server

Body = dict[str, Any]


class Started(NamedTuple):
    """The request was accepted by this model; how many tokens its prompt has."""

    model: str
    prompt_tokens: int = 0


class Words(NamedTuple):
    """Some text of the answer."""

    text: str


class Thought(NamedTuple):
    """Some text of the thought before the answer."""

    text: str


class Called(NamedTuple):
    """A call began; its arguments come in pieces."""

    id: str
    name: str


class Argument(NamedTuple):
    """A piece of the arguments of the last call, which are JSON."""

    text: str


class Ended(NamedTuple):
    """The answer is over. reason, usage and timings are those of the chat; stop: the request's stop string that ended it."""

    reason: str
    usage: Body
    timings: Body
    stop: str | None = None


Event = Started | Thought | Words | Called | Argument | Ended


async def events(server: Server, chat: Body, client: str, names: Mapping[str, str]) -> AsyncGenerator[Event, None]:
    """A chat request's answer. names: as in `speaking`. Raises ApiError as chat_core.stream does; closing it cancels the answer."""
    asked = {**chat, "stream": True, "stream_options": {"include_usage": True}, "n": None}
    reason, stop = "stop", None
    async with contextlib.aclosing(renaming(chat_module.stream(server, asked, client), names)) as chunks:
        started = False
        async for chunk in chunks:
            if not started:
                started = True
                yield Started(chunk["model"], chunk["timings"]["prompt_tokens"])
            if not chunk["choices"]:
                yield Ended(reason, chunk["usage"], chunk["timings"], stop)
                return
            choice = chunk["choices"][0]
            reason = choice["finish_reason"] or reason
            stop = choice.get("stop_reason")
            for event in _said(choice["delta"]):
                yield event


async def renaming(chunks: AsyncGenerator[Body, None], names: Mapping[str, str]) -> AsyncGenerator[Body, None]:
    """The chunks, with `speaking` around them."""
    async with contextlib.aclosing(chunks):
        with speaking(names):
            async for chunk in chunks:
                yield chunk


@contextlib.contextmanager
def speaking(names: Mapping[str, str]) -> Iterator[None]:
    """ApiErrors that blame a field of a chat request name the face's own one instead: names says which that is."""
    try:
        yield
    except ApiError as error:
        found = re.match("[a-z_]+", error.message)
        word = found[0] if found else ""
        message = names.get(word, word) + error.message[len(word) :]
        param = names.get(error.param or "", error.param)
        raise ApiError(
            error.status, message, type=error.type, param=param, code=error.code, headers=error.headers
        ) from None


def _said(delta: Body) -> list[Event]:
    out: list[Event] = [Thought(delta["reasoning_content"])] if delta.get("reasoning_content") else []
    out += [Words(delta["content"])] if delta.get("content") else []
    for call in delta.get("tool_calls", ()):
        function = call["function"]
        if "name" in function:
            out.append(Called(call["id"], function["name"]))
        if function["arguments"]:
            out.append(Argument(function["arguments"]))
    return out


def given(**fields: Any) -> Body:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
