"""OpenAI's Responses API over the chat core, without memory: /v1/responses, whole and streamed.

    input     a text or items -> messages; function_call and function_call_output become calls and results
    output    items: the thought (reasoning), a message and function calls, in the order they were said, each with its events

Nothing is kept: an answer that goes on from previous_response_id or a conversation is refused, store is ignored. What it
gives up: tools other than functions, reasoning items (left out of the prompt), log-probabilities.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gangpao.serve.api import schema
from gangpao.serve.api.events import Argument, Body, Called, Ended, Event, Started, Thought, Words, events, given
from gangpao.serve.api.schema import Whole
from gangpao.serve.http.errors import ApiError
from gangpao.serve.http.stream import Json, client_of, event_stream, read_json, sse, watched
from gangpao.serve.server import Server


class Piece(schema.Body):
    """A piece of a message or of a result."""

    type: Literal["input_text", "output_text", "reasoning_text", "text", "refusal", "input_image"]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


class Item(schema.Body):
    """A message (type may be left out), a call, its result, or the model's thoughts."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: schema.TextOr[Piece] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: schema.TextOr[Piece] | None = None


class Tool(schema.Body):
    """A function that may be called."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Text(schema.Body):
    """format: text, json_object, or json_schema with its schema beside the type."""

    format: dict[str, Any] | None = None


class ResponsesRequest(schema.Body):
    """POST /v1/responses."""

    model: str | None = Field(None, max_length=512)
    input: schema.TextOr[Item]
    instructions: str | None = None
    tools: schema.Many[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    max_output_tokens: Whole | None = schema.setting("max_tokens", schema.UNLIMITED)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: schema.Metadata | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None


OPERATIONS = {"/v1/responses": (ResponsesRequest, "OpenAI's Responses API, without memory; events with stream: true.")}
_NAMES = {"max_tokens": "max_output_tokens", "response_format": "text.format"}
_KEPT = ("previous_response_id", "conversation", "background")


def routes(server: Server) -> list[Route]:
    """The route of this API."""

    async def respond(request: Request) -> Response:
        asked = schema.parse(ResponsesRequest, await read_json(request))
        answer, writer = events(server, chat_of(asked), client_of(request), _NAMES), _Writer(asked)
        if asked.stream:
            return await event_stream(request, _stream(answer, writer), on_error=writer.error)
        return Json(await watched(request, _whole(answer, writer)))

    return [Route("/v1/responses", respond, methods=["POST"])]


# --- requests


def chat_of(asked: ResponsesRequest) -> Body:
    """The request as a chat. Raises ApiError (400)."""
    for name in _KEPT:
        if getattr(asked, name):
            raise ApiError(
                400, f"{name}: this server keeps no answers; send the whole conversation as input", param=name
            )
    messages: list[Body] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        for i, item in enumerate(asked.input):
            _add(messages, item, f"input.{i}")
    functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in asked.tools or ()]
    return given(
        model=asked.model,
        messages=messages,
        tools=[{"type": "function", "function": function} for function in functions] or None,
        tool_choice=asked.tool_choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=asked.text.format if asked.text else None,
        max_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
    )


def _add(messages: list[Body], item: Item, where: str) -> None:
    if item.type == "message":
        if item.role is None or item.content is None:
            raise ApiError(400, f"{where}: a message needs a role and content", param="input")
        messages.append({"role": item.role, "content": _content(item.content)})
    elif item.type == "function_call":
        if not item.call_id or not item.name:
            raise ApiError(400, f"{where}: a function_call needs a call_id and a name", param="input")
        function = {"name": item.name, "arguments": item.arguments or "{}"}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif item.type == "function_call_output":
        if not item.call_id or item.output is None:
            raise ApiError(400, f"{where}: a function_call_output needs a call_id and an output", param="input")
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})


def _content(content: str | list[Piece]) -> str | list[Body]:
    return content if isinstance(content, str) else [_piece(piece) for piece in content]


def _piece(piece: Piece) -> Body:
    if piece.type == "input_image":
        return {"type": "image_url", "image_url": {"url": piece.image_url or ""}}
    return {"type": "text", "text": piece.text or piece.refusal or ""}


# --- answers


async def _whole(answer: AsyncGenerator[Event, None], writer: "_Writer") -> Body:
    async with contextlib.aclosing(answer):
        async for event in answer:
            for _ in writer.write(event):
                pass
    return writer.response


async def _stream(answer: AsyncGenerator[Event, None], writer: "_Writer") -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(answer):
        async for event in answer:
            for data in writer.write(event):
                yield sse(data, data["type"])


def _more(part: Body) -> Body:
    """What events of an answer's text have and those of a thought's have not."""
    return {"logprobs": []} if part["type"] == "output_text" else {}


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class _Writer:
    """The response as it grows, and the events that say so. Each event carries the next sequence_number."""

    def __init__(self, asked: ResponsesRequest) -> None:
        form = asked.text.format if asked.text else None
        self.response: Body = {
            "id": _id("resp"), "object": "response", "created_at": int(time.time()), "status": "in_progress",
            "error": None, "incomplete_details": None, "instructions": asked.instructions, "model": "", "output": [],
            "max_output_tokens": asked.max_output_tokens, "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None, "store": False,
            "temperature": asked.temperature, "top_p": asked.top_p, "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in asked.tools or ()], "text": {"format": form or {"type": "text"}},
            "truncation": "disabled", "usage": None,
        }  # fmt: skip
        self._number = -1
        self._item: Body | None = None

    def write(self, event: Event) -> Iterator[Body]:
        """Take an event in; what the client is told of it."""
        match event:
            case Started(model, _):
                self.response["model"] = model
                yield self._event("response.created", response=self._now())
                yield self._event("response.in_progress", response=self._now())
            case Thought(text):
                if self._item is None:
                    yield from self._begin_reasoning()
                yield from self._say(text)
            case Words(text):
                if self._item is None or self._item["type"] != "message":
                    yield from self._begin_message()
                yield from self._say(text)
            case Called(id, name):
                yield from self._end_item("completed")
                yield from self._begin(
                    {"id": _id("fc"), "type": "function_call", "call_id": id, "name": name, "arguments": ""}
                )
            case Argument(text):
                assert self._item is not None
                self._item["arguments"] += text
                yield self._of_item("response.function_call_arguments.delta", delta=text)
            case Ended(reason, usage, timings, _):
                yield from self._finish("incomplete" if reason == "length" else "completed", usage, timings)

    def error(self, error: ApiError) -> bytes:
        """The event of an answer that failed while it was streaming."""
        data = self._event("error", code=error.code or error.type, message=error.message, param=error.param)
        return sse(data, "error")

    def _event(self, type: str, **fields: Any) -> Body:
        self._number += 1
        return {"type": type, "sequence_number": self._number, **fields}

    def _now(self) -> Body:
        return {**self.response, "output": list(self.response["output"])}

    def _of_item(self, type: str, **fields: Any) -> Body:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self.response["output"])}
        return self._event(type, **place, **fields)

    def _begin(self, item: Body) -> Iterator[Body]:
        self._item = {**item, "status": "in_progress"}
        yield self._event(
            "response.output_item.added", output_index=len(self.response["output"]), item=dict(self._item)
        )

    def _begin_reasoning(self) -> Iterator[Body]:
        yield from self._begin({"id": _id("rs"), "type": "reasoning", "summary": [], "content": []})
        yield from self._begin_part({"type": "reasoning_text", "text": ""})

    def _begin_message(self) -> Iterator[Body]:
        yield from self._end_item("completed")
        yield from self._begin({"id": _id("msg"), "type": "message", "role": "assistant", "content": []})
        yield from self._begin_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})

    def _begin_part(self, part: Body) -> Iterator[Body]:
        assert self._item is not None
        self._item["content"] = [part]
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _say(self, text: str) -> Iterator[Body]:
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        yield self._of_item(f"response.{part['type']}.delta", content_index=0, delta=text, **_more(part))

    def _end_item(self, status: str) -> Iterator[Body]:
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] in ("message", "reasoning"):
            part = item["content"][0]
            yield self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **_more(part))
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=len(self.response["output"]), item=item)
        self.response["output"].append(item)
        self._item = None

    def _finish(self, status: str, usage: Body, timings: Body) -> Iterator[Body]:
        yield from self._end_item(status)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "completed_at": int(time.time()),
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
                "total_tokens": usage["total_tokens"],
            },
            "timings": timings,
        }
        yield self._event(f"response.{status}", response=self._now())
