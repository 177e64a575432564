"""Anthropic's Messages API: /v1/messages, whole and streamed, and /v1/messages/count_tokens.

    request     blocks -> a Chat: tool_use becomes a call, tool_result a message of its own, system comes first
    answer      thought, text and calls -> blocks; input_tokens are those that the prefix cache did not have, as Anthropic counts

Thoughts that come back are left out of the prompt; their signature, which Anthropic's server checks, is empty. An assistant's
message at the end is continued. The line with which Claude Code says its version is no part of the prompt (content.py).

What it gives up: tools that Anthropic's own servers run; they are left out and noted, as are blocks that say nothing in words. How
many input tokens came from the cache a stream says in its last event.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gangpao.engine.thinking.options import Thinking
from gangpao.serve.answers import chat as core
from gangpao.serve.answers.chat import Call, Chat, Json, Message
from gangpao.serve.answers.events import CallArguments, CallBegan, Ended, Event, Finished, Started, Text, Thought
from gangpao.serve.answers.forms import Form
from gangpao.serve.api import constraints, content, schema
from gangpao.serve.api.dialect import Body, Notes, given, left_out, refuse_others, respond
from gangpao.serve.api.schema import Operation, Whole
from gangpao.serve.http.errors import ApiError, ErrorForm
from gangpao.serve.http.stream import Json as JsonResponse
from gangpao.serve.http.stream import client_of, read_json, sse, watched
from gangpao.serve.server import Server
from gangpao.validation import Field


class Block(schema.Part):
    """A piece of a message; which fields it has depends on its type."""

    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    is_error: bool | None = None


class Turn(schema.Body):
    """A message of one side, or a later one of the system."""

    role: str
    content: schema.TextOr[Block] | None


class Tool(schema.Body):
    """A function that may be called. Of other types are the tools that Anthropic's servers run."""

    _loose = schema.loose(frozenset({"custom", "function"}))

    name: str | None = None
    description: str | None = None
    input_schema: Any = None
    type: str | None = None
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
    effort: str | None = Field(None, max_length=32)


class ThinkingConfig(schema.Body):
    """enabled, disabled, or left to the model (adaptive, and any other word)."""

    type: str
    budget_tokens: Whole | None = schema.budget()


class CountRequest(schema.Body):
    """POST /v1/messages/count_tokens."""

    model: str | None = Field(None, max_length=512)
    messages: schema.Many[Turn] = Field(min_length=1)
    system: schema.TextOr[Block] | None = None
    tools: schema.Many[Tool] | None = None
    tool_choice: Choice | None = None
    thinking: ThinkingConfig | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Whole = Field(ge=-1, le=schema.MAX_TOKENS, description="-1 is no limit.")
    stop_sequences: schema.Many[str] | None = None
    temperature: float | None = schema.setting("temperature")
    top_p: float | None = schema.setting("top_p")
    top_k: Whole | None = schema.setting("top_k", low=-1)
    stream: bool | None = None
    output_config: Output | None = None
    output_format: Format | None = Field(None, description="An older place of output_config.format.")


OPERATIONS = {
    "/v1/messages": Operation(MessagesRequest, "Anthropic's Messages API; a stream of its events with stream: true."),
    "/v1/messages/count_tokens": Operation(
        CountRequest, "Tokens of the prompt that such a request has.", streams=False
    ),
}

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def _error(message: str, error: ApiError, param: str | None) -> Body:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


ERRORS = ErrorForm(
    ("/v1/messages",),
    _error,
    {"stop": "stop_sequences", "response_format": "output_config.format"},
    "prompt is too long: {tokens} tokens > {limit} maximum (the server's --context raises it, as far as the model goes)",
)


def routes(server: Server) -> list[Route]:
    """The routes of this API."""

    async def messages(request: Request) -> Response:
        body = await read_json(request)
        asked = schema.parse(MessagesRequest, body)
        answer = core.answer(server, chat_of(asked, body), client_of(request))
        return await respond(request, answer, _Writer(), stream=asked.stream is True)

    async def count_tokens(request: Request) -> Response:
        body = await read_json(request)
        chat = chat_of(schema.parse(CountRequest, body), body)
        return JsonResponse({"input_tokens": len(await watched(request, core.prompt_ids(server, chat)))})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]


# --- requests

_OTHERS = {
    "stop": "take stop_sequences", "response_format": "take output_config.format", "functions": "take tools",
    "function_call": "take tool_choice",
}  # fmt: skip


def chat_of(asked: CountRequest, body: Body) -> Chat:
    """The request as a chat. Raises ApiError (400)."""
    refuse_others(body, _OTHERS)
    notes = Notes()
    messages: list[Message] = []
    if asked.system is not None:
        blocks = content.without_attribution(asked.system)
        said = content.read(blocks, "system", notes, between="\n")
        messages.append(Message("system", said.text))
        if said.images:
            notes.add("system", "images of the system prompt are left out")
    for i, turn in enumerate(asked.messages):
        messages += _turn(turn, f"messages.{i}", notes)
    choice, last = asked.tool_choice, messages[-1]
    limits = constraints.read(body, _form(asked))
    return Chat(
        messages=content.settled(messages, notes), model=asked.model, sampling=_sampling(asked), tools=_tools(asked, notes),
        tool_choice=_choice(choice) if choice else None, parallel=not (choice and choice.disable_parallel_tool_use),
        form=limits.form, ends=limits.ends, continues=last.role == "assistant" and not last.calls,
        thinking=_thinking(asked), left_out=notes.all,
    )  # fmt: skip


def _sampling(asked: CountRequest) -> Body:
    if not isinstance(asked, MessagesRequest):
        return {}
    if asked.max_tokens == 0:
        raise ApiError(400, "must be at least 1, or -1 for no limit", field="max_tokens")
    top_k = None if asked.top_k is None else max(0, asked.top_k)
    stop = tuple(s for s in asked.stop_sequences or () if s)
    limit = None if asked.max_tokens == -1 else asked.max_tokens
    return given(max_tokens=limit, stop=stop, temperature=asked.temperature, top_p=asked.top_p, top_k=top_k)


def _form(asked: CountRequest) -> Form | None:
    if not isinstance(asked, MessagesRequest):
        return None
    form = (asked.output_config.format if asked.output_config else None) or asked.output_format
    shape = form and {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema_}}
    return Form("json", shape) if shape else None


def _thinking(asked: CountRequest) -> Thinking:
    said, output = asked.thinking, asked.output_config if isinstance(asked, MessagesRequest) else None
    on = {"enabled": True, "disabled": False}.get(said.type) if said else None
    return Thinking(
        think=on,
        think_budget=said.budget_tokens if said and on is not False else None,
        effort=output.effort if output else None,
    )


_ERROR = "Error: "


def _turn(turn: Turn, where: str, notes: Notes) -> Iterator[Message]:
    role = content.role_of(turn.role, where, notes)
    blocks = content.without_attribution(turn.content) if role == "system" else turn.content
    if blocks is None or isinstance(blocks, str):
        yield Message(role, blocks or "")
        return
    others: list[Block] = []
    calls: list[Call] = []
    for i, block in enumerate(cast(Sequence[Block], blocks)):
        if block.type == "tool_result":
            text, images = content.read(block.content, f"{where}.content.{i}", notes, between="\n")
            if block.is_error:
                text = _ERROR + text
                images = tuple(image._replace(at=image.at + len(_ERROR)) for image in images)
            yield Message("tool", text, images, call_id=block.tool_use_id or "")
        elif block.type == "tool_use":
            calls += _call(block, f"{where}.content.{i}", notes)
        else:
            others.append(block)
    if others or calls or not any(block.type == "tool_result" for block in blocks):
        said = content.read(others, where, notes, between="\n" if role == "system" else "")
        yield Message(role, said.text, said.images, tuple(calls))


def _call(block: Block, where: str, notes: Notes) -> Iterator[Call]:
    if block.name:
        yield Call(block.name, {} if block.input is None else block.input, block.id or "")
    else:
        notes.add(where, "a tool_use block without a name is left out")


def _tools(asked: CountRequest, notes: Notes) -> tuple[Json, ...]:
    tools = []
    for i, tool in enumerate(asked.tools or ()):
        if tool.type not in (None, "custom", "function"):
            notes.add(f"tools.{i}", f"a tool of type {tool.type!r:.60} is left out")
            continue
        if not tool.name:
            notes.add(f"tools.{i}", "a tool without a name is left out")
            continue
        function = given(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)
        tools.append({"type": "function", "function": function})
    return tuple(tools)


def _choice(choice: Choice) -> str | Body:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


# --- answers

_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _usage(usage: Json) -> Body:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }


class _Writer:
    """The message as it grows, and Anthropic's events of it; knows which block is open."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        self._message: Body = {}
        self._open: Body | None = None
        self._arguments = ""
        self._ended: Body = {}

    def write(self, event: Event) -> Iterator[Body]:
        """Take an event in; what a stream says of it."""
        match event:
            case Started(model, prompt_tokens, notes):
                self._message = {
                    "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model, "content": [],
                    "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
                    **left_out(notes),
                }  # fmt: skip
                yield {"type": "message_start", "message": {**self._message, "content": []}}
                yield {"type": "ping"}
            case Thought(text):
                yield from self._say("thinking", text, dict(_THINKING))
            case Text(text):
                yield from self._say("text", text, {"type": "text", "text": ""})
            case CallBegan(id, name):
                yield from self._begin({"type": "tool_use", "id": id, "name": name, "input": {}})
            case CallArguments(text):
                self._arguments += text
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case Ended(reason, stop):
                yield from self._end()
                stopped = isinstance(stop, str)
                self._ended = {
                    "stop_reason": "stop_sequence" if stopped else _REASONS[reason], "stop_sequence": stop if stopped else None,
                }  # fmt: skip
            case Finished(usage, _):
                self._message |= {**self._ended, "usage": _usage(usage)}
                yield {"type": "message_delta", "delta": self._ended, "usage": _usage(usage)}
                yield {"type": "message_stop"}

    def whole(self) -> Body:
        """The message. A call that was cut off has no input and is left out."""
        return {**self._message, "content": [b for b in self._message["content"] if b.get("input", 0) is not None]}

    def frame(self, data: Body) -> bytes:
        """An event under its name."""
        return sse(data, data["type"])

    def error(self, error: ApiError) -> bytes:
        """The event of an answer that failed while it was streaming."""
        return sse(ERRORS.body(error), "error")

    def last(self) -> bytes:
        """The last event has been sent already."""
        return b""

    def _say(self, kind: Literal["thinking", "text"], text: str, empty: Body) -> Iterator[Body]:
        if self._open is None or self._open["type"] != kind:
            yield from self._begin(empty)
        assert self._open is not None
        self._open[kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _begin(self, block: Body) -> Iterator[Body]:
        yield from self._end()
        self._open, self._arguments = block, ""
        self._message["content"].append(block)
        yield {"type": "content_block_start", "index": self._index, "content_block": dict(block)}

    @property
    def _index(self) -> int:
        return len(self._message["content"]) - 1

    def _delta(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self) -> Iterator[Body]:
        block, self._open = self._open, None
        if block is None:
            return
        if block["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(self._arguments)
            except ValueError:  # cut off
                block["input"] = None
        yield {"type": "content_block_stop", "index": self._index}
