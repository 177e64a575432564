"""OpenAI's Responses API, without memory: /v1/responses, whole and streamed.

    input     a text or items -> messages; calls and their outputs become calls and results
    output    items: the thought (reasoning), a message and calls, in the order they were said, each with its events

Nothing is kept: an answer that goes on from previous_response_id or a conversation is refused, store is ignored. Functions in a
namespace are offered as NAMESPACE__NAME, a custom tool as a function of one text. What it gives up: tools that OpenAI's servers
run, items that say nothing in words (both are left out and noted), reasoning items (left out), log-probabilities.
"""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

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
from gangpao.serve.api.openai_chat import Reasoning, arguments_of
from gangpao.serve.api.schema import Operation, Part, Whole
from gangpao.serve.http.errors import ApiError, ErrorForm
from gangpao.serve.http.stream import client_of, read_json, sse
from gangpao.serve.server import Server
from gangpao.validation import Field

_CALLS = frozenset({"function_call", "custom_tool_call", "local_shell_call"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output", "local_shell_call_output"})


class Item(schema.Body):
    """A message (type may be left out), a call, its result, or something else that an earlier answer was made of."""

    _loose = schema.loose(_CALLS | _OUTPUTS | {"message"})

    type: str | None = "message"
    role: str | None = None
    content: schema.TextOr[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: Any = None
    input: str | None = None
    action: dict[str, Any] | None = None
    output: schema.TextOr[Part] | dict[str, Any] | None = None


class Tool(schema.Body):
    """A function that may be called, a tool of one text (custom), or a namespace of functions."""

    _loose = schema.loose(frozenset({"function", "custom", "namespace"}))

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Any = None
    format: Any = None
    strict: bool | None = None
    tools: "schema.Many[Tool] | None" = None


class TextOptions(schema.Body):
    """format: text, json_object, or json_schema with its schema beside the type."""

    format: dict[str, Any] | None = None


class ResponsesRequest(schema.Body):
    """POST /v1/responses."""

    model: str | None = Field(None, max_length=512)
    input: schema.TextOr[Item] | None = None
    instructions: schema.TextOr[Part] | None = None
    tools: schema.Many[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Whole | None = schema.setting("max_tokens", f"{schema.UNLIMITED} -1 is that, too.", low=-1)
    temperature: float | None = schema.setting("temperature")
    top_p: float | None = schema.setting("top_p")
    stream: bool | None = None
    metadata: schema.Metadata | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None


OPERATIONS = {
    "/v1/responses": Operation(
        ResponsesRequest, "OpenAI's Responses API, without memory; events with stream: true."
    ),
}  # fmt: skip
ERRORS = ErrorForm(
    ("/v1/responses",),
    names={"max_tokens": "max_output_tokens", "response_format": "text.format", "messages": "input"},
)
_KEPT = ("previous_response_id", "conversation", "background")


def routes(server: Server) -> list[Route]:
    """The route of this API."""

    async def respond_to(request: Request) -> Response:
        body = await read_json(request)
        asked = schema.parse(ResponsesRequest, body)
        tools, notes = _Tools(), Notes()
        chat = chat_of(asked, body, tools, notes)
        writer = _Writer(asked, tools, body.get("tools") or [])
        return await respond(
            request, core.answer(server, chat, client_of(request)), writer, stream=asked.stream is True
        )

    return [Route("/v1/responses", respond_to, methods=["POST"])]


# --- requests


class _Named(NamedTuple):
    """What a function that is offered is called in this API. custom: it is a tool of one text."""

    name: str
    namespace: str | None = None
    custom: bool = False


class _Tools(dict[str, _Named]):
    """The functions that are offered, by the names that the model sees."""

    def offer(self, tool: Tool, where: str, notes: Notes, namespace: str | None = None) -> Iterator[Json]:
        """The functions of a tool; a tool that is none is left out."""
        if tool.type == "namespace":
            for i, inner in enumerate(tool.tools or ()):
                yield from self.offer(inner, f"{where}.tools.{i}", notes, tool.name)
            return
        if tool.type not in ("function", "custom"):
            notes.add(where, f"a tool of type {tool.type!r:.60} is left out")
            return
        if not tool.name:
            notes.add(where, "a tool without a name is left out")
            return
        if tool.type == "custom" and isinstance(tool.format, dict) and tool.format.get("type") not in (None, "text"):
            notes.add(where, "the grammar of a custom tool is not held: its text is free")
        named = _Named(tool.name, namespace, tool.type == "custom")
        name = _seen(tool.name, namespace)
        self[name] = named
        parameters = _ONE_TEXT if named.custom else tool.parameters
        function = given(name=name, description=tool.description, parameters=parameters, strict=tool.strict)
        yield {"type": "function", "function": function}


_ONE_TEXT = {
    "type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": False,
}  # fmt: skip


def _seen(name: str, namespace: str | None) -> str:
    """The name of a function as the model sees it."""
    return f"{namespace}__{name}" if namespace else name


_OTHERS = {
    "stop": "take /v1/chat/completions for stop strings", "response_format": "take text.format", "functions": "take tools",
    "function_call": "take tool_choice",
}  # fmt: skip


def chat_of(asked: ResponsesRequest, body: Body, tools: _Tools, notes: Notes) -> Chat:
    """The request as a chat. Raises ApiError (400)."""
    for name in _KEPT:
        if getattr(asked, name):
            raise ApiError(
                400, f"{name}: this server keeps no answers; send the whole conversation as input", param=name
            )
    offered = [f for i, tool in enumerate(asked.tools or ()) for f in tools.offer(tool, f"tools.{i}", notes)]
    refuse_others(body, _OTHERS)
    messages = []
    if asked.instructions is not None:
        messages.append(Message("system", content.read(asked.instructions, "instructions", notes, between="\n").text))
    if isinstance(asked.input, str):
        messages.append(Message("user", asked.input))
    else:
        for i, item in enumerate(asked.input or ()):
            _add(messages, item, f"input.{i}", notes)
    form = asked.text.format if asked.text else None
    limits = constraints.read(body, None if form is None else Form("json", form))
    said, limit = asked.reasoning or Reasoning(), asked.max_output_tokens
    return Chat(
        messages=content.settled(messages, notes), model=asked.model,
        sampling=given(max_tokens=None if limit == -1 else limit, temperature=asked.temperature, top_p=asked.top_p),
        tools=tuple(offered), tool_choice=_choice(asked.tool_choice), parallel=asked.parallel_tool_calls is not False,
        form=limits.form, ends=limits.ends, thinking=Thinking.asked(said.enabled, said.effort, said.budget), left_out=notes.all,
    )  # fmt: skip


def _choice(choice: str | Body | None) -> str | Body | None:
    """tool_choice with the names that the model sees."""
    if isinstance(choice, dict) and isinstance(choice.get("name"), str):
        namespace = choice.get("namespace")
        return {**choice, "name": _seen(choice["name"], namespace if isinstance(namespace, str) else None)}
    return choice


def _add(messages: list[Message], item: Item, where: str, notes: Notes) -> None:
    if item.type in (None, "message"):
        if "content" not in item.model_fields_set:
            raise ApiError(400, f"{where}: a message needs content", param="input")
        said = content.read(item.content, where, notes)
        messages.append(Message(content.role_of(item.role or "no role", where, notes), said.text, said.images))
    elif item.type in _CALLS:
        if (call := _call(item, where)) is None:
            notes.add(where, f"a {item.type} without a name is left out")
            return
        if not messages or messages[-1].role != "assistant":
            messages.append(Message("assistant"))
        messages[-1] = replace(messages[-1], calls=(*messages[-1].calls, call))
    elif item.type in _OUTPUTS:
        if "output" not in item.model_fields_set:
            raise ApiError(400, f"{where}: a {item.type} needs an output", param="input")
        if isinstance(item.output, dict):
            said = content.Content(json.dumps(item.output, ensure_ascii=False))
        else:
            said = content.read(item.output, where, notes, between="\n")
        messages.append(Message("tool", said.text, said.images, call_id=item.call_id or ""))
    elif item.type != "reasoning":
        notes.add(where, f"an item of type {item.type!r:.60} is left out")


def _call(item: Item, where: str) -> Call | None:
    if item.type == "local_shell_call":
        return Call("local_shell", item.action or {}, item.call_id or "")
    if not item.name:
        return None
    if item.type == "custom_tool_call":
        return Call(item.name, {"input": item.input or ""}, item.call_id or "")
    arguments = arguments_of(item.arguments, f"{where}: arguments", "input")
    return Call(_seen(item.name, item.namespace), arguments, item.call_id or "")


# --- answers


def _more(part: Body) -> Body:
    """What events of an answer's text have and those of a thought's have not."""
    return {"logprobs": []} if part["type"] == "output_text" else {}


def _echo(said: Any) -> Any:
    """A text or parts as they came."""
    return [part.model_dump(exclude_unset=True) for part in said] if isinstance(said, list) else said


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class _Writer:
    """The response as it grows, and the events that say so. Each event carries the next sequence_number."""

    media_type = "text/event-stream"

    def __init__(self, asked: ResponsesRequest, tools: _Tools, echoed: list[Any]) -> None:
        form = asked.text.format if asked.text else None
        self.response: Body = {
            "id": _id("resp"), "object": "response", "created_at": int(time.time()), "status": "in_progress",
            "error": None, "incomplete_details": None, "instructions": _echo(asked.instructions), "model": "", "output": [],
            "max_output_tokens": asked.max_output_tokens, "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None, "store": False,
            "temperature": asked.temperature, "top_p": asked.top_p, "tool_choice": asked.tool_choice or "auto",
            "tools": echoed, "text": {"format": form or {"type": "text"}}, "truncation": "disabled", "usage": None,
        }  # fmt: skip
        self._tools = tools
        self._number = -1
        self._item: Body | None = None
        self._status = "completed"

    def write(self, event: Event) -> Iterator[Body]:
        """Take an event in; what the client is told of it."""
        match event:
            case Started(model, _, notes):
                self.response |= {"model": model, **left_out(notes)}
                yield self._event("response.created", response=self._now())
                yield self._event("response.in_progress", response=self._now())
            case Thought(text):
                if self._item is None:
                    yield from self._begin_reasoning()
                yield from self._say(text)
            case Text(text):
                if self._item is None or self._item["type"] != "message":
                    yield from self._begin_message()
                yield from self._say(text)
            case CallBegan(id, name):
                yield from self._end_item("completed")
                yield from self._begin_call(id, self._tools.get(name, _Named(name)))
            case CallArguments(text):
                assert self._item is not None
                self._item["arguments"] += text
                if self._item["type"] == "function_call":
                    yield self._of_item("response.function_call_arguments.delta", delta=text)
            case Ended(reason):
                self._status = "incomplete" if reason == "length" else "completed"
                yield from self._end_item(self._status)
            case Finished(usage, timings):
                yield self._finish(self._status, usage, timings)

    def whole(self) -> Body:
        """The response of an answer that is over."""
        return self.response

    def frame(self, data: Body) -> bytes:
        """An event under its name."""
        return sse(data, data["type"])

    def error(self, error: ApiError) -> bytes:
        """The event of an answer that failed while it was streaming."""
        said = ERRORS.body(error)["error"]
        code = error.code or error.type
        return sse(self._event("error", code=code, message=said["message"], param=said["param"]), "error")

    def last(self) -> bytes:
        """The last event has been sent already."""
        return b""

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

    def _begin_call(self, id: str, named: _Named) -> Iterator[Body]:
        item = {"id": _id("fc"), "type": "function_call", "call_id": id, "name": named.name, "arguments": ""}
        if named.custom:
            # Its one text comes as JSON: it is told when it is whole.
            self._item = {**item, "id": _id("ctc"), "type": "custom_tool_call", "status": "in_progress"}
            return
        yield from self._begin(item | given(namespace=named.namespace))

    def _end_custom(self, item: Body) -> Iterator[Body]:
        try:
            text = str(json.loads(item.pop("arguments"))["input"])
        except (ValueError, KeyError, TypeError):  # cut off
            text = ""
        yield from self._begin({**item, "input": ""})
        yield self._of_item("response.custom_tool_call_input.delta", delta=text)
        yield self._of_item("response.custom_tool_call_input.done", input=text)
        assert self._item is not None
        self._item["input"] = text

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
        if self._item is None:
            return
        if self._item["type"] == "custom_tool_call":
            yield from self._end_custom(self._item)
        item = self._item
        item["status"] = status
        if item["type"] in ("message", "reasoning"):
            part = item["content"][0]
            yield self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **_more(part))
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        elif item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=len(self.response["output"]), item=item)
        self.response["output"].append(item)
        self._item = None

    def _finish(self, status: str, usage: Json, timings: Json) -> Body:
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
        return self._event(f"response.{status}", response=self._now())
