"""Ollama's API over the chat core: /api/chat, /api/generate, /api/embed, whole or as lines of JSON.

    options   num_predict, temperature, ... -> the fields of a chat request; what only loads models (num_ctx) is ignored
    answers   thought and text in pieces, calls whole, counts and nanoseconds in the last line

A request without messages (or prompt) loads the model and says so. keep_alive is accepted: how long models stay is the
server's own setting. What it gives up: pull, push, create, copy and delete; suffix; context, which Ollama has given up, too.
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gangpao.serve.api import completions, embeddings, ollama_models, schema
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
    renaming,
)
from gangpao.serve.api.ollama_models import model_name, stamp
from gangpao.serve.api.schema import Whole
from gangpao.serve.http.errors import ApiError, ollama_body
from gangpao.serve.http.stream import Json, client_of, encoded, event_stream, read_json, watched
from gangpao.serve.server import Server

_NDJSON = "application/x-ndjson"
_NAMES = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty", "response_format": "format"}


class Function(schema.Body):
    """What was called."""

    name: str
    arguments: dict[str, Any] | None = None


class Call(schema.Body):
    """A call of an earlier answer."""

    function: Function


class Turn(schema.Body):
    """A message; images are base64."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: schema.Many[str] | None = None
    tool_calls: schema.Many[Call] | None = None
    tool_name: str | None = None


class Options(schema.Body):
    """The options that mean something here; num_predict of 0 or less is as much as fits, as where it is not given, a seed below 0
    is any, and a top_k of 0 or less keeps all."""

    num_predict: Whole | None = None
    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Whole | None = None
    stop: schema.TextOr[str] | None = None


class _Asked(schema.Body):
    model: str | None = Field(None, max_length=512)
    options: Options | None = None
    format: str | dict[str, Any] | None = None
    stream: bool | None = None


class ChatRequest(_Asked):
    """POST /api/chat."""

    messages: schema.Many[Turn] | None = None
    tools: schema.Many[dict[str, Any]] | None = None


class GenerateRequest(_Asked):
    """POST /api/generate. raw: the prompt is the whole text, without the chat template."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: schema.Many[str] | None = None


class EmbedRequest(schema.Body):
    """POST /api/embed, and /api/embeddings, which has a prompt and gives one vector."""

    model: str | None = Field(None, max_length=512)
    input: schema.TextOr[str] | None = None
    prompt: str | None = None
    dimensions: Whole | None = None


OPERATIONS = {
    "/api/chat": (ChatRequest, "Ollama's chat; a stream of JSON lines unless stream is false."),
    "/api/generate": (GenerateRequest, "Ollama's answer to one prompt; a stream of JSON lines unless stream is false."),
    "/api/embed": (EmbedRequest, "Means of the last hidden states, of length 1."),
    "/api/show": (ollama_models.ShowRequest, "What a model's file says about it."),
}


def routes(server: Server) -> list[Route]:
    """The routes of this API."""

    async def chat(request: Request) -> Response:
        asked = schema.parse(ChatRequest, await read_json(request))
        if not asked.messages:
            return await _load(server, request, asked, {"message": {"role": "assistant", "content": ""}})
        return await _answer(server, request, asked, chat_of(asked), _Writer("message"))

    async def generate(request: Request) -> Response:
        asked = schema.parse(GenerateRequest, await read_json(request))
        if not asked.prompt:
            return await _load(server, request, asked, {"response": ""})
        if asked.raw:
            return await _raw(server, request, asked)
        return await _answer(server, request, asked, chat_of(_as_chat(asked)), _Writer("response"))

    async def embed(request: Request) -> Response:
        start = time.perf_counter()
        asked = schema.parse(EmbedRequest, await read_json(request))
        texts = asked.prompt if asked.input is None else asked.input
        if not texts:  # none is asked for
            name = await _loaded(server, request, asked.model)
            old = asked.input is None and request.url.path.endswith("embeddings")
            return Json({"embedding": []} if old else {"model": name, "embeddings": []})
        body = given(model=model_name(asked.model), input=texts, dimensions=asked.dimensions)
        found = await watched(request, embeddings.embed(server, body, client_of(request)))
        vectors = [one["embedding"] for one in found["data"]]
        if asked.input is None:
            return Json({"embedding": vectors[0]})
        head = {
            "model": found["model"], "load_duration": 0, "total_duration": _ns(time.perf_counter() - start),
            "prompt_eval_count": found["usage"]["prompt_tokens"],
        }  # fmt: skip
        return embeddings.answer_of(head, "embeddings", vectors)

    handlers = [("chat", chat), ("generate", generate), ("embed", embed), ("embeddings", embed)]
    ours = [Route(f"/api/{name}", handler, methods=["POST"]) for name, handler in handlers]
    return [*ours, *ollama_models.routes(server)]


# --- requests


def chat_of(asked: ChatRequest) -> Body:
    """The request as OpenAI's. Raises ApiError (400)."""
    messages: list[Body] = []
    for i, turn in enumerate(asked.messages or ()):
        content: Any = turn.content or ""
        if turn.images:
            pictures = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in turn.images
            ]
            content = [*pictures, {"type": "text", "text": content}]
        calls = [_call(call.function, f"call_{i}_{j}") for j, call in enumerate(turn.tool_calls or ())]
        messages.append({"role": turn.role, "content": content} | given(tool_calls=calls or None))
    return given(
        messages=messages, tools=asked.tools or None, response_format=_format(asked.format), **_settings(asked)
    )


def _as_chat(asked: GenerateRequest) -> ChatRequest:
    turns = [Turn(role="system", content=asked.system)] if asked.system else []
    turns.append(Turn(role="user", content=asked.prompt, images=asked.images))
    return ChatRequest(model=asked.model, options=asked.options, format=asked.format, messages=turns)


def _call(function: Function, id: str) -> Body:
    arguments = json.dumps(function.arguments or {}, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": function.name, "arguments": arguments}}


def _format(form: str | Body | None) -> Body | None:
    if not form:
        return None
    if isinstance(form, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    if form != "json":
        raise ApiError(400, 'format must be "json" or a JSON schema', param="format")
    return {"type": "json_object"}


def _settings(asked: _Asked) -> Body:
    options = asked.options or Options()
    limit, seed, top_k = options.num_predict, options.seed, options.top_k
    return given(
        model=model_name(asked.model),
        max_tokens=None if limit is not None and limit <= 0 else limit,
        top_k=None if top_k is None else max(0, top_k),
        seed=None if seed is not None and seed < 0 else seed,
        repetition_penalty=options.repeat_penalty,
        model_defaults=True,
        **options.model_dump(include={"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop"}),
    )  # fmt: skip


# --- answers


async def _loaded(server: Server, request: Request, model: str | None) -> str:
    """The name of the model, which is in memory then."""

    async def use() -> str:
        async with server.hub.use(model_name(model)) as loaded:
            return loaded.name

    return await watched(request, use())


async def _load(server: Server, request: Request, asked: _Asked, empty: Body) -> Response:
    name = await _loaded(server, request, asked.model)
    return Json({"model": name, "created_at": stamp(time.time()), **empty, "done": True, "done_reason": "load"})


async def _answer(server: Server, request: Request, asked: _Asked, chat: Body, writer: "_Writer") -> Response:
    answer = events(server, chat, client_of(request), _NAMES)
    return await _write(request, asked, answer, writer)


async def _raw(server: Server, request: Request, asked: GenerateRequest) -> Response:
    if asked.format:
        raise ApiError(400, "format needs the chat template: leave out raw", param="format")
    settings = {"max_tokens": schema.MAX_TOKENS, **_settings(asked)}
    body = {"prompt": asked.prompt, "stream": True, "stream_options": {"include_usage": True}, **settings}
    chunks = renaming(completions.stream(server, body, client_of(request)), _NAMES)
    return await _write(request, asked, _raw_events(chunks), _Writer("response"))


async def _raw_events(chunks: AsyncGenerator[Body, None]) -> AsyncGenerator[Event, None]:
    reason, started = "stop", False
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if not started:
                started = True
                yield Started(chunk["model"])
            for choice in chunk["choices"]:
                reason = choice["finish_reason"] or reason
                if choice["text"]:
                    yield Words(choice["text"])
            if not chunk["choices"]:
                yield Ended(reason, chunk["usage"], chunk["timings"])


async def _write(request: Request, asked: _Asked, answer: AsyncGenerator[Event, None], writer: "_Writer") -> Response:
    if asked.stream is not False:
        return await event_stream(request, _lines(answer, writer), on_error=_error_line, media_type=_NDJSON)
    return Json(await watched(request, _joined(answer, writer)))


async def _lines(answer: AsyncGenerator[Event, None], writer: "_Writer") -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(answer):
        async for event in answer:
            for line in writer.write(event):
                yield _line(line)


async def _joined(answer: AsyncGenerator[Event, None], writer: "_Writer") -> Body:
    """The last line, with all that was said in the others."""
    words: list[str] = []
    thought: list[str] = []
    calls: list[Body] = []
    last: Body = {}
    async with contextlib.aclosing(answer):
        async for event in answer:
            for last in writer.write(event):
                said = last if writer.key == "response" else last["message"]
                words.append(said["response" if writer.key == "response" else "content"])
                thought.append(said.get("thinking", ""))
                calls += said.get("tool_calls", [])
    return last | writer.said("".join(words), calls, "".join(thought))


def _line(data: Body) -> bytes:
    return encoded(data) + b"\n"


def _error_line(error: ApiError) -> bytes:
    return _line(ollama_body(error))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


class _Writer:
    """Ollama's lines of one answer. key: where the text lies, "message" in a chat and "response" otherwise."""

    def __init__(self, key: Literal["message", "response"]) -> None:
        self.key = key
        self._start = time.perf_counter()
        self._model = ""
        self._call: tuple[str, list[str]] | None = None

    def said(self, words: str, calls: Sequence[Body] = (), thought: str = "") -> Body:
        """The part of a line that holds the answer."""
        if self.key == "response":
            return {"response": words} | given(thinking=thought or None)
        more = given(thinking=thought or None, tool_calls=list(calls) or None)
        return {"message": {"role": "assistant", "content": words} | more}

    def write(self, event: Event) -> list[Body]:
        """The lines that an event makes. A call goes out when it is complete; one that was cut off does not."""
        match event:
            case Started(model, _):
                self._model = model
            case Thought(text):
                return [self._new(thought=text)]
            case Words(text):
                return [*self._called(), self._new(text)]
            case Called(_, name):
                done, self._call = self._called(), (name, [])
                return done
            case Argument(text):
                if self._call:
                    self._call[1].append(text)
            case Ended():
                return [*self._called(), self._new() | self._end(event)]
        return []

    def _called(self) -> list[Body]:
        call, self._call = self._call, None
        if call is None:
            return []
        try:
            arguments = json.loads("".join(call[1]))
        except ValueError:
            return []
        return [self._new(calls=[{"function": {"name": call[0], "arguments": arguments}}])]

    def _new(self, words: str = "", calls: Sequence[Body] = (), thought: str = "") -> Body:
        return {
            "model": self._model,
            "created_at": stamp(time.time()),
            **self.said(words, calls, thought),
            "done": False,
        }

    def _end(self, ended: Ended) -> Body:
        usage, speed = ended.usage, ended.timings
        said, rate = usage["completion_tokens"], speed["decode_tps"]
        return {
            "done": True,
            "done_reason": "length" if ended.reason == "length" else "stop",
            "total_duration": _ns(time.perf_counter() - self._start),
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": _ns(max(0.0, speed["ttft_s"] - speed["queue_s"])),
            "eval_count": said,
            "eval_duration": _ns((said - 1) / rate) if rate else 0,
        }
