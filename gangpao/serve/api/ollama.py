"""Ollama's API: /api/chat, /api/generate, /api/embed, whole or as lines of JSON.

    options   num_predict, temperature, ... -> the settings of a chat; what only loads models (num_ctx) is ignored
    answers   thought and text in pieces, calls whole, counts and nanoseconds in the last line

A request without messages (or prompt) loads the model and says so. keep_alive is accepted: how long models stay is the
server's own setting. An assistant's message at the end is continued, as Ollama does it. What it gives up: pull, push, create, copy
and delete; context, which Ollama has given up, too.
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gangpao.engine.thinking.options import Thinking
from gangpao.serve.answers import chat as core
from gangpao.serve.answers.chat import Call as ToolCall
from gangpao.serve.answers.chat import Chat, Message
from gangpao.serve.answers.events import CallArguments, CallBegan, Ended, Event, Finished, Started, Text, Thought
from gangpao.serve.answers.forms import Form
from gangpao.serve.answers.pictures import Image
from gangpao.serve.api import completions, constraints, content, embeddings, ollama_models, schema
from gangpao.serve.api.dialect import Body, Notes, given, left_out, respond
from gangpao.serve.api.ollama_models import model_name, stamp
from gangpao.serve.api.openai_chat import arguments_of, functions
from gangpao.serve.api.schema import Operation, Whole
from gangpao.serve.http.errors import ApiError, ErrorForm
from gangpao.serve.http.stream import Json, client_of, encoded, read_json, watched
from gangpao.serve.server import Server
from gangpao.validation import Field

_NOT_HERE = {
    "logprobs": "Ollama's API has none here; /v1/chat/completions gives them",
    "top_logprobs": "Ollama's API has none here; /v1/chat/completions gives them",
}


class Turn(schema.Body):
    """A message; images are base64. tool_calls: those of an earlier answer."""

    role: str
    content: schema.TextOr[schema.Part] | None = None
    images: schema.Many[str] | None = None
    tool_calls: schema.Many[dict[str, Any]] | None = None
    tool_name: str | None = None


class Options(schema.Body):
    """The options that mean something here; num_predict of 0 or less is as much as fits, as where it is not given, a seed below 0
    is any, and a top_k of 0 or less keeps all."""

    num_predict: Whole | None = Field(None, le=schema.MAX_TOKENS)
    temperature: float | None = schema.setting("temperature")
    top_k: Whole | None = Field(None, le=1_000_000)
    top_p: float | None = schema.setting("top_p")
    min_p: float | None = schema.setting("min_p")
    repeat_penalty: float | None = schema.setting("repetition_penalty")
    presence_penalty: float | None = schema.setting("presence_penalty")
    frequency_penalty: float | None = schema.setting("frequency_penalty")
    seed: Whole | None = Field(None, le=2**63 - 1)
    stop: schema.TextOr[str] | None = None


class _Asked(schema.Body):
    model: str | None = Field(None, max_length=512)
    options: Options | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = Field(None, description="true, false, or how much: low, medium, high.")
    stream: bool | None = None


class ChatRequest(_Asked):
    """POST /api/chat."""

    messages: schema.Many[Turn] | None = None
    tools: schema.Many[dict[str, Any] | None] | None = None


class GenerateRequest(_Asked):
    """POST /api/generate. raw: the prompt is the whole text, without the chat template. An empty system is none,
    as in Ollama. suffix: what comes after a hole behind the prompt, which the model fills."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: schema.Many[str] | None = None


class EmbedRequest(schema.Body):
    """POST /api/embed, and /api/embeddings, which has a prompt and gives one vector."""

    model: str | None = Field(None, max_length=512)
    input: schema.TextOr[str] | None = None
    prompt: str | None = None
    dimensions: Whole | None = None
    truncate: bool | None = Field(None, description="Take the beginning of a text that is too long; true by default.")


OPERATIONS = {
    "/api/chat": Operation(ChatRequest, "Ollama's chat; a stream of JSON lines unless stream is false."),
    "/api/generate": Operation(
        GenerateRequest, "Ollama's answer to one prompt; a stream of JSON lines unless stream is false."
    ),
    "/api/embed": Operation(EmbedRequest, "Means of the last hidden states, of length 1.", streams=False),
    "/api/show": Operation(ollama_models.ShowRequest, "What a model's file says about it.", streams=False),
}


def _error(message: str, error: ApiError, param: str | None) -> Body:
    return {"error": message}


ERRORS = ErrorForm(
    ("/api",),
    _error,
    {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty", "response_format": "format"},
    "the input length exceeds the context length (prompt is too long: {tokens} tokens > {limit} maximum, answer included); shorten "
    "it, or start the server with a larger --context",
)


def routes(server: Server) -> list[Route]:
    """The routes of this API."""

    async def chat(request: Request) -> Response:
        body = await read_json(request)
        asked = schema.parse(ChatRequest, body)
        if not asked.messages:
            return await _load(server, request, asked, {"message": {"role": "assistant", "content": ""}})
        return await _answer(server, request, asked, chat_of(asked, body), "message")

    async def generate(request: Request) -> Response:
        body = await read_json(request)
        asked = schema.parse(GenerateRequest, body)
        if not asked.prompt and not asked.images:
            return await _load(server, request, asked, {"response": ""})
        if (asked.raw or asked.suffix) and asked.images:
            raise ApiError(400, "images: only in a chat: leave raw and suffix out", param="images")
        if asked.raw or asked.suffix:
            return await _raw(server, request, asked, body)
        return await _answer(server, request, asked, chat_of(_as_chat(asked), body), "response")

    async def embed(request: Request) -> Response:
        start = time.perf_counter()
        asked = schema.parse(EmbedRequest, await read_json(request))
        texts = asked.prompt if asked.input is None else asked.input
        if not texts:  # none is asked for
            name = await _loaded(server, request, asked.model)
            old = asked.input is None and request.url.path.endswith("embeddings")
            return Json({"embedding": []} if old else {"model": name, "embeddings": []})
        body = given(
            model=model_name(asked.model),
            input=texts,
            dimensions=asked.dimensions,
            truncate=asked.truncate is not False,
        )
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


def chat_of(asked: ChatRequest, body: Body) -> Chat:
    """The request as a chat; body: as it came. Raises ApiError (400)."""
    notes = Notes()
    turns = asked.messages or []
    messages = content.settled([_message(turn, f"messages.{i}", notes) for i, turn in enumerate(turns)], notes)
    limits = constraints.read(_limits(body), _format(asked.format))
    on = asked.think if isinstance(asked.think, bool) else None
    effort = asked.think if isinstance(asked.think, str) and asked.think else None
    return Chat(
        messages=messages, model=model_name(asked.model), sampling=_settings(asked), model_defaults=True,
        tools=functions(asked.tools or (), notes), form=limits.form, ends=limits.ends,
        continues=messages[-1].role == "assistant" and not turns[-1].tool_calls,
        thinking=Thinking.asked(on, effort), left_out=notes.all,
    )  # fmt: skip


def _limits(body: Body) -> Body:
    """What restricts the answer, of the body and of its options. Raises ApiError (400) for what Ollama's API does not give here."""
    options = body.get("options") or {}
    for place in (body, options):
        constraints.refuse(place, _NOT_HERE)
    return constraints.joined(body, options)


def _message(turn: Turn, where: str, notes: Notes) -> Message:
    calls = [_call(call, f"{where}.tool_calls.{i}", notes) for i, call in enumerate(turn.tool_calls or ())]
    pictures = tuple(Image(base64=one) for one in turn.images or ())
    role = content.role_of(turn.role, where, notes)
    text, images = content.read(turn.content, where, notes)
    return Message(role, text, (*pictures, *images), tuple(c for c in calls if c), name=turn.tool_name)


def _call(call: Body, where: str, notes: Notes) -> ToolCall | None:
    """An earlier call, with an id, as Ollama's have none; None for half of one."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(name := function.get("name"), str):
        arguments = arguments_of(function.get("arguments") or {}, f"{where}: arguments", "messages")
        return ToolCall(name, arguments, f"call_{where}")
    notes.add(where, "a call without a function's name is left out")
    return None


def _as_chat(asked: GenerateRequest) -> ChatRequest:
    turns = [Turn(role="system", content=asked.system)] if asked.system else []
    turns.append(Turn(role="user", content=asked.prompt, images=asked.images))
    return ChatRequest(
        model=asked.model, options=asked.options, format=asked.format, think=asked.think, messages=turns
    )  # fmt: skip


def _format(form: str | Body | None) -> Form | None:
    if form is None or form == "":
        return None
    if isinstance(form, dict):
        return Form("json", {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}, "format")
    if form != "json":
        raise ApiError(400, 'must be "json" or a JSON schema', field="response_format")
    return Form("json", {"type": "json_object"}, "format")


def _settings(asked: _Asked) -> Body:
    """The engine's settings that the options give."""
    options = asked.options or Options()
    limit, seed, top_k, stop = options.num_predict, options.seed, options.top_k, options.stop
    return given(
        max_tokens=None if limit is not None and limit <= 0 else limit,
        top_k=None if top_k is None else max(0, top_k),
        seed=None if seed is not None and seed < 0 else seed,
        repetition_penalty=options.repeat_penalty,
        stop=None if stop is None else tuple(s for s in ([stop] if isinstance(stop, str) else stop) if s),
        **options.model_dump(include={"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"}),
    )  # fmt: skip


# --- answers


async def _loaded(server: Server, request: Request, model: str | None) -> str:
    """The name of the model, which is in memory then."""

    async def use() -> str:
        async with server.models.use(model_name(model)) as loaded:
            return loaded.name

    return await watched(request, use())


async def _load(server: Server, request: Request, asked: _Asked, empty: Body) -> Response:
    name = await _loaded(server, request, asked.model)
    return Json({"model": name, "created_at": stamp(time.time()), **empty, "done": True, "done_reason": "load"})


async def _answer(
    server: Server, request: Request, asked: _Asked, chat: Chat, key: Literal["message", "response"]
) -> Response:
    answer = core.answer(server, chat, client_of(request))
    return await respond(request, answer, _Writer(key), stream=asked.stream is not False)


async def _raw(server: Server, request: Request, asked: GenerateRequest, body: Body) -> Response:
    if _format(asked.format) is not None:
        raise ApiError(400, "needs the chat template: leave out raw", field="response_format")
    limits = _limits(body)
    constraints.read(limits)  # refuses what a completion takes and Ollama's answer has no place for
    settings = {
        **limits,
        "max_tokens": schema.MAX_TOKENS,
        **_settings(asked),
        "model": model_name(asked.model),
        "model_defaults": True,
    }
    settings["stop"] = list(settings.get("stop", ()))
    settings["suffix"] = asked.suffix
    sent = {"prompt": asked.prompt, "stream": True, "stream_options": {"include_usage": True}, **settings}
    answer = _raw_events(completions.stream(server, sent, client_of(request)))
    return await respond(request, answer, _Writer("response"), stream=asked.stream is not False)


async def _raw_events(chunks: AsyncGenerator[Body, None]) -> AsyncGenerator[Event, None]:
    """The chunks of a completion as events."""
    started = False
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if not started:
                started = True
                yield Started(chunk["model"])
            for choice in chunk["choices"]:
                if choice["text"]:
                    yield Text(choice["text"])
                if choice["finish_reason"]:
                    yield Ended(choice["finish_reason"])
            if not chunk["choices"]:
                yield Finished(chunk["usage"], chunk["timings"])


def _line(data: Body) -> bytes:
    return encoded(data) + b"\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


class _Writer:
    """Ollama's lines of one answer. key: where the text lies, "message" in a chat and "response" otherwise."""

    media_type = "application/x-ndjson"

    def __init__(self, key: Literal["message", "response"]) -> None:
        self.key = key
        self._start = time.perf_counter()
        self._model = ""
        self._call: tuple[str, list[str]] | None = None
        self._reason = "stop"
        self._words: list[str] = []
        self._thought: list[str] = []
        self._calls: list[Body] = []
        self._left_out: Body = {}
        self._end: Body = {}

    def write(self, event: Event) -> list[Body]:
        """The lines that an event makes. A call goes out when it is complete; one that was cut off does not."""
        match event:
            case Started(model, _, notes):
                self._model, self._left_out = model, left_out(notes)
            case Thought(text):
                self._thought.append(text)
                return [self._new(thought=text)]
            case Text(text):
                self._words.append(text)
                return [*self._called(), self._new(text)]
            case CallBegan(_, name):
                done, self._call = self._called(), (name, [])
                return done
            case CallArguments(text):
                if self._call:
                    self._call[1].append(text)
            case Ended(reason):
                self._reason = reason
                return self._called()
            case Finished():
                self._end = self._counts(event) | self._left_out
                return [self._new() | self._end]
        return []

    def whole(self) -> Body:
        """The last line, with all that was said in the others."""
        return self._new("".join(self._words), self._calls, "".join(self._thought)) | self._end

    def frame(self, data: Body) -> bytes:
        """A line."""
        return _line(data)

    def error(self, error: ApiError) -> bytes:
        """The line of an answer that failed while it was streaming."""
        return _line(ERRORS.body(error))

    def last(self) -> bytes:
        """The last line says that it is the last."""
        return b""

    def _called(self) -> list[Body]:
        call, self._call = self._call, None
        if call is None:
            return []
        try:
            arguments = json.loads("".join(call[1]))
        except ValueError:
            return []
        made = {"function": {"name": call[0], "arguments": arguments}}
        self._calls.append(made)
        return [self._new(calls=[made])]

    def _said(self, words: str, calls: Sequence[Body], thought: str) -> Body:
        """The part of a line that holds the answer."""
        if self.key == "response":
            return {"response": words} | given(thinking=thought or None)
        more = given(thinking=thought or None, tool_calls=list(calls) or None)
        return {"message": {"role": "assistant", "content": words} | more}

    def _new(self, words: str = "", calls: Sequence[Body] = (), thought: str = "") -> Body:
        return {
            "model": self._model,
            "created_at": stamp(time.time()),
            **self._said(words, calls, thought),
            "done": False,
        }

    def _counts(self, event: Finished) -> Body:
        usage, speed = event.usage, event.timings
        said, rate = usage["completion_tokens"], speed["decode_tps"]
        return {
            "done": True,
            "done_reason": "length" if self._reason == "length" else "stop",
            "total_duration": _ns(time.perf_counter() - self._start),
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": _ns(max(0.0, speed["ttft_s"] - speed["queue_s"])),
            "eval_count": said,
            "eval_duration": _ns((said - 1) / rate) if rate else 0,
        }
