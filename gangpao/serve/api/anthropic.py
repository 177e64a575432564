"""Anthropic's Messages API over the chat core: /v1/messages, whole and streamed, and /v1/messages/count_tokens.

    request     blocks -> OpenAI's messages: tool_use becomes a call, tool_result a message of its own, system comes first
    answer      thought, text and calls -> blocks; input_tokens are those that the prefix cache did not have, as Anthropic counts

Thoughts that come back are left out of the prompt; their signature, which Anthropic's server checks, is empty.

What it gives up: an answer begun by the caller (prefill), documents. How many input tokens came from the cache a
stream says in its last event.
"""

import json
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gangpao.serve.api import chat as chat_module
from gangpao.serve.api import schema
from gangpao.serve.api.events import (
    Argument,
    Body,
    Called,
    Ended,
    Event,
    Started,
    Thought,
    Words,
    events,
    given,
    speaking,
)
from gangpao.serve.api.schema import Whole
from gangpao.serve.http.errors import ApiError, anthropic_body
from gangpao.serve.http.stream import Json, client_of, event_stream, read_json, sse, watched
from gangpao.serve.server import Server


class Source(schema.Body):
    """An image's bytes (base64) or address."""

    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(schema.Body):
    """A piece of a message; which fields it has depends on its type."""

    type: Literal["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str | None = None
    source: Source | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "schema.TextOr[Block] | None" = None
    is_error: bool | None = None


class Turn(schema.Body):
    """A message of one side."""

    role: Literal["user", "assistant"]
    content: schema.TextOr[Block]


class Tool(schema.Body):
    """A function that may be called."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class Choice(schema.Body):
    """Whether, and what, is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Format(schema.Body):
    """A schema that the answer conforms to."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class Output(schema.Body):
    """How the answer is to be written."""

    format: Format | None = None


class CountRequest(schema.Body):
    """POST /v1/messages/count_tokens."""

    model: str | None = Field(None, max_length=512)
    messages: schema.Many[Turn] = Field(min_length=1)
    system: schema.TextOr[Block] | None = None
    tools: schema.Many[Tool] | None = None
    tool_choice: Choice | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Whole = Field(ge=1)
    stop_sequences: schema.Many[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    stream: bool | None = None
    output_config: Output | None = None


OPERATIONS = {
    "/v1/messages": (MessagesRequest, "Anthropic's Messages API; a stream of its events with stream: true."),
    "/v1/messages/count_tokens": (CountRequest, "Tokens of the prompt that such a request has."),
}
_NAMES = {"stop": "stop_sequences", "response_format": "output_config.format"}


def routes(server: Server) -> list[Route]:
    """The routes of this API."""

    async def messages(request: Request) -> Response:
        asked = schema.parse(MessagesRequest, await read_json(request))
        chat, client = chat_of(asked), client_of(request)
        if asked.stream:
            return await event_stream(request, _stream(server, chat, client), on_error=_error_event)
        with speaking(_NAMES):
            return Json(message_of(await watched(request, chat_module.complete(server, chat, client))))

    async def count_tokens(request: Request) -> Response:
        asked = schema.parse(CountRequest, await read_json(request))
        return Json({"input_tokens": await watched(request, chat_module.count_tokens(server, chat_of(asked)))})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


# --- requests


def chat_of(asked: CountRequest) -> Body:
    """The request as OpenAI's. Raises ApiError (400)."""
    if asked.messages[-1].role == "assistant":
        raise ApiError(400, "messages: the last one must be the user's; an answer cannot be begun for the model")
    messages: list[Body] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, "system")})
    for i, turn in enumerate(asked.messages):
        messages += _turn(turn, f"messages.{i}")
    choice = asked.tool_choice
    chat = given(
        model=asked.model,
        messages=messages,
        tools=[_tool(tool) for tool in asked.tools] if asked.tools else None,
        tool_choice=_choice(choice) if choice else None,
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
    )
    if not isinstance(asked, MessagesRequest):
        return chat
    form = asked.output_config.format if asked.output_config else None
    return chat | given(
        max_tokens=asked.max_tokens,
        stop=asked.stop_sequences or None,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema_}} if form else None,
    )  # fmt: skip


def _turn(turn: Turn, where: str) -> Iterator[Body]:
    blocks = [Block(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    for i, block in enumerate(blocks):
        if block.type == "tool_result":
            text = _text(block.content or "", f"{where}.content.{i}")
            yield {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": _marked(text, block.is_error)}
    if turn.role == "assistant":
        calls = [_call(block, f"{where}.content.{i}") for i, block in enumerate(blocks) if block.type == "tool_use"]
        text = "".join(block.text or "" for block in blocks if block.type == "text")
        yield {"role": "assistant", "content": text} | given(tool_calls=calls or None)
        return
    parts = [_part(block, where) for block in blocks if block.type in ("text", "image")]
    if parts or not any(block.type == "tool_result" for block in blocks):
        yield {"role": "user", "content": parts}


def _marked(text: str, is_error: bool | None) -> str:
    return f"Error: {text}" if is_error else text


def _part(block: Block, where: str) -> Body:
    if block.type == "text":
        return {"type": "text", "text": block.text or ""}
    source = block.source
    if source is None:
        raise ApiError(400, f"{where}: an image needs a source", param="messages")
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url or ""}}


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    if any(block.type != "text" for block in content):
        raise ApiError(400, f"{where}: only text blocks can be read here")
    return "\n".join(block.text or "" for block in content)


def _call(block: Block, where: str) -> Body:
    if not block.id or not block.name:
        raise ApiError(400, f"{where}: a tool_use block needs an id and a name", param="messages")
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _tool(tool: Tool) -> Body:
    function = given(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)
    return {"type": "function", "function": function}


def _choice(choice: Choice) -> str | Body:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


# --- answers

_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def message_of(answer: Body) -> Body:
    """A chat.completion as a message. A call that was cut off has no input and is left out."""
    choice = answer["choices"][0]
    said = choice["message"]
    thought = said.get("reasoning_content")
    blocks: list[Body] = [{**_THINKING, "thinking": thought}] if thought else []
    blocks += [{"type": "text", "text": said["content"]}] if said["content"] else []
    for call in said.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            continue
        blocks.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments})
    return {
        **_head(answer["model"]),
        "content": blocks,
        **_end(choice["finish_reason"], choice["stop_reason"]),
        "usage": _usage(answer["usage"]),
    }


def _end(reason: str, stop: str | None) -> Body:
    return {"stop_reason": "stop_sequence" if stop else _REASONS[reason], "stop_sequence": stop}


def _head(model: str) -> Body:
    return {
        "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None,
    }  # fmt: skip


def _usage(usage: Body) -> Body:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }


async def _stream(server: Server, chat: Body, client: str) -> AsyncGenerator[bytes, None]:
    writer = _Writer()
    answer = events(server, chat, client, _NAMES)
    try:
        async for event in answer:
            for data in writer.write(event):
                yield sse(data, data["type"])
    finally:
        await answer.aclose()


class _Writer:
    """Anthropic's events of one answer; knows which block is open."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None

    def write(self, event: Event) -> Iterator[Body]:
        match event:
            case Started(model, prompt_tokens):
                usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
                yield {"type": "message_start", "message": {**_head(model), "usage": usage}}
                yield {"type": "ping"}
            case Thought(text):
                if self._open != "thinking":
                    yield from self._begin(dict(_THINKING))
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case Words(text):
                if self._open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case Called(id, name):
                yield from self._begin({"type": "tool_use", "id": id, "name": name, "input": {}})
            case Argument(text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case Ended(reason, usage, _, stop):
                yield from self._end()
                yield {"type": "message_delta", "delta": _end(reason, stop), "usage": _usage(usage)}
                yield {"type": "message_stop"}

    def _begin(self, block: Body) -> Iterator[Body]:
        yield from self._end()
        self._index += 1
        self._open = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self) -> Iterator[Body]:
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}


def _error_event(error: ApiError) -> bytes:
    return sse(anthropic_body(error), "error")
