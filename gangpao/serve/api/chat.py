"""One chat request: OpenAI's JSON in, OpenAI's JSON out, whole or in chunks. The faces of other APIs translate to and from it.

    complete    chat request -> chat.completion
    stream      chat request -> chat.completion.chunk, ...; the first one comes when the request is accepted

Messages become the engine's own (system, user, assistant, all text), tools and a response format become a constraint and a
parser (tool_calls.py, grammar.py). A thought in front of an answer goes out as reasoning_content (text/thoughts.py); what comes
back under that name is left out of the prompt. What it gives up: images are looked at and then refused, because no model
here sees yet.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from gangpao.engine.answer import FinishReason, Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sequences import Handle, Request
from gangpao.serve.answers import answers, grammar, images, tool_calls
from gangpao.serve.answers.answers import Answers
from gangpao.serve.answers.grammar import GrammarConstraint
from gangpao.serve.api.schema import ChatMessage, ChatRequest, Part, parse, unknown
from gangpao.serve.http import json_bounds
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import Loaded
from gangpao.serve.server import Server
from gangpao.text.thoughts import Said, Splitter

log = logging.getLogger("gangpao.serve")


async def complete(server: Server, body: dict[str, Any], client: str) -> dict[str, Any]:
    """The whole answer as a chat.completion. Raises ApiError; cancelling the task cancels the answer."""
    asked = _parse(body)
    async with server.hub.use(asked.model) as loaded:
        requests = await _requests(server, loaded, asked, client)
        with Answers(loaded, requests, server.metrics) as running:
            choices = [_Choice(loaded, asked, request) for request in requests]
            async for i, piece in running:
                choices[i].hear(piece)
            return {
                **_head("chat.completion", loaded),
                "choices": [c.whole(i, _stop(requests[i], running.handles[i])) for i, c in enumerate(choices)],
                "usage": answers.usage(running.handles, running.handles[:1], sum(c.thought_tokens for c in choices)),
                "timings": answers.timings(server, running.handles),
            }


async def stream(server: Server, body: dict[str, Any], client: str) -> AsyncGenerator[dict[str, Any], None]:
    """The answer in chunks. Everything wrong with the request is raised before the first; closing it cancels the answer."""
    asked = _parse(body)
    async with contextlib.AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(server.hub.use(asked.model))
        requests = await _requests(server, loaded, asked, client)
        running = stack.enter_context(Answers(loaded, requests, server.metrics))
        head = _head("chat.completion.chunk", loaded)
        empty = {"usage": None} if asked.usage_wanted else {}

        def chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            return {**head, "choices": [choice], **empty}

        choices = [_Choice(loaded, asked, request) for request in requests]
        for i in range(len(choices)):
            first = chunk(i, {"role": "assistant", "content": "", "refusal": None})
            yield {**first, "timings": {"prompt_tokens": len(requests[i].prompt_ids)}}
        async for i, piece in running:
            for delta in choices[i].hear(piece):
                yield chunk(i, delta, logprobs=choices[i].new_logprobs())
            if piece.finish_reason:
                last = chunk(
                    i, {}, logprobs=choices[i].new_logprobs(), finish_reason=choices[i].finish_reason,
                    stop_reason=_stop(requests[i], running.handles[i]),
                )  # fmt: skip
                yield {**last, "timings": answers.timings(server, running.handles)}
        if asked.usage_wanted:
            counts = answers.usage(running.handles, running.handles[:1], sum(c.thought_tokens for c in choices))
            yield {**head, "choices": [], "usage": counts, "timings": answers.timings(server, running.handles)}


async def count_tokens(server: Server, body: dict[str, Any]) -> int:
    """Tokens of the prompt that this chat request would have."""
    asked = _parse(body)
    async with server.hub.use(asked.model) as loaded:
        messages = await _messages(server, loaded, asked)
        return len(await _encode(server, loaded, asked, messages))


# --- a request


def _parse(body: dict[str, Any]) -> ChatRequest:
    asked = parse(ChatRequest, body)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if extra := unknown(body, ChatRequest):
        log.info("fields that mean nothing here were ignored: %s", ", ".join(extra))
    return asked


async def _requests(server: Server, loaded: Loaded, asked: ChatRequest, client: str) -> list[Request]:
    engine = loaded.engine
    answers.check_count(server.settings.places, asked.n or 1)
    params = asked.params(
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        max_tokens=asked.max_completion_tokens,
        room=engine.context,
        make=engine.recommended,
    )
    messages = await _messages(server, loaded, asked)
    each = answers.choices_of(params, asked.n or 1)
    rules = await _constraints(server, loaded, asked, len(each))  # first: it is over in milliseconds
    ids = await _encode(server, loaded, asked, messages)
    answers.check_length(loaded, len(ids))
    return [
        # Where a grammar says all of the answer it also says the end: a turn's mark in a JSON string is only text.
        Request(
            ids,
            p,
            stop=() if rule and rule.whole else engine.template.stop,
            client=client,
            constraint=rule,
            speculate=asked.speculate is not False,
        )
        for p, rule in zip(each, rules, strict=True)
    ]


async def _messages(server: Server, loaded: Loaded, asked: ChatRequest) -> list[dict[str, Any]]:
    """OpenAI's messages with one text for a content."""
    out = []
    for i, message in enumerate(asked.messages):
        role = "system" if message.role == "developer" else message.role
        one: dict[str, Any] = {"role": role, "content": await _text(server, message, f"messages.{i}")}
        if message.tool_calls:
            one["tool_calls"] = message.tool_calls
        if message.tool_call_id is not None:
            one["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            one["name"] = message.name
        if one["content"] is None and not message.tool_calls:
            raise ApiError(400, f"messages.{i}: content is missing", param="messages")
        out.append(one)
    shown = asked.tools if asked.tool_choice != "none" else None
    answers.check_text(loaded, _letters([[(m["content"], m.get("tool_calls")) for m in out], shown]))
    for i, one in enumerate(out):
        for j, call in enumerate(one.get("tool_calls", ())):
            _check_arguments(call, f"messages.{i}.tool_calls.{j}: arguments")
    return out


def _letters(value: Any) -> int:
    """Characters of all the texts in something like JSON."""
    count, left = 0, [value]
    while left:
        match left.pop():
            case str(text):
                count += len(text)
            case dict(fields):
                left += [*fields, *fields.values()]
            case list(items) | tuple(items):
                left += items
    return count


def _check_arguments(call: dict[str, Any], where: str) -> None:
    """Arguments are JSON in a text, which is going to be parsed, too."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        try:
            json_bounds.check(arguments.encode("utf-8", "surrogatepass"), where)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None


async def _text(server: Server, message: ChatMessage, where: str) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        if part.type == "image_url":
            await _look(server, part, where)
            raise ApiError(
                400, f"{where}: this model does not see: it reads text only", param="messages", code="no_vision"
            )
        if part.text is None:
            raise ApiError(400, f"{where}: a part of type text needs text", param="messages")
        texts.append(part.text)
    return "".join(texts)


async def _look(server: Server, part: Part, where: str) -> None:
    """Refuse what is no image or too large a one."""
    url = part.image_url if isinstance(part.image_url, str) else part.image_url and part.image_url.url
    if not url:
        raise ApiError(400, f"{where}: a part of type image_url needs image_url.url", param="messages")
    try:
        await asyncio.to_thread(images.load, url, server.settings.allow_image_hosts)
    except ValueError as error:
        raise ApiError(400, f"{where}: {error}"[:300], param="messages", code="bad_image") from None


async def _encode(server: Server, loaded: Loaded, asked: ChatRequest, messages: list[dict[str, Any]]) -> list[int]:
    def work(engine: Engine) -> list[int]:
        return tool_calls.encode(engine, messages, asked.tools, asked.tool_choice)

    return await answers.prepare(loaded, work, loaded.engine)


async def _constraints(server: Server, loaded: Loaded, asked: ChatRequest, n: int) -> list[GrammarConstraint | None]:
    if not asked.response_format and not asked.tools:
        return [None] * n

    def work() -> list[GrammarConstraint | None]:
        parallel = asked.parallel_tool_calls is not False
        return [
            grammar.constraint_for(loaded.engine, asked.response_format, asked.tools, asked.tool_choice, parallel)
            for _ in range(n)
        ]

    return await answers.prepare(loaded, work)


# --- an answer


def _head(kind: str, loaded: Loaded) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": loaded.name,
        "system_fingerprint": answers.fingerprint(),
    }


def _stop(request: Request, handle: Handle) -> str | None:
    """Which of the request's own stop strings ended the answer (vLLM's stop_reason); a format's turn marks are none."""
    return handle.stopped_by if handle.stopped_by in request.params.stop else None


def _parser(asked: ChatRequest) -> tool_calls.ToolParser | None:
    if not asked.tools or asked.tool_choice == "none":
        return None
    return tool_calls.ToolParser(asked.tools, asked.tool_choice)


class _Choice:
    """One of the n answers while it grows: its thought, text, calls and log-probabilities so far."""

    def __init__(self, loaded: Loaded, asked: ChatRequest, request: Request) -> None:
        self._tokenizer = loaded.engine.tokenizer
        # Where a grammar says all of the answer, there is no place for a thought in it.
        whole = isinstance(request.constraint, GrammarConstraint) and request.constraint.whole
        self._splitter = Splitter(None) if whole else loaded.engine.splitter(request.prompt_ids)
        self._parser = _parser(asked)
        self._thought: list[str] = []
        self.thought_tokens = 0
        self._content: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[dict[str, Any]] | None = [] if asked.logprobs else None
        self._reason: FinishReason | None = None

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's: tool_calls where the answer calls and was not cut off."""
        called = self._parser is not None and self._parser.called
        return "tool_calls" if called and self._reason == "stop" else self._reason

    def new_logprobs(self) -> dict[str, Any] | None:
        """The log-probabilities that no chunk carried yet: also those of text that is still held back."""
        if not self._logprobs:
            return None
        found, self._logprobs = self._logprobs, []
        return {"content": found, "refusal": None}

    def hear(self, piece: Piece) -> list[dict[str, Any]]:
        """Take a piece in; the deltas that it makes."""
        if self._logprobs is not None:
            self._logprobs += answers.chat_logprobs(self._tokenizer, piece.logprobs)
        self._reason = piece.finish_reason
        thinking = self._splitter.thinking
        said = self._splitter.push(piece.text)
        self.thought_tokens += len(piece.ids) if thinking or self._splitter.thinking else 0
        if piece.finish_reason:
            said += self._splitter.finish()
        deltas = [delta for one in said for delta in self._deltas(one)]
        if piece.finish_reason and self._parser:
            deltas += self._parser.finish()
        for delta in deltas:
            self._add(delta)
        return deltas

    def _deltas(self, said: Said) -> list[dict[str, Any]]:
        if said.thought:
            return [{"reasoning_content": said.text}]
        return self._parser.push(said.text) if self._parser else [{"content": said.text}]

    def _add(self, delta: dict[str, Any]) -> None:
        if thought := delta.get("reasoning_content"):
            self._thought.append(thought)
        if text := delta.get("content"):
            self._content.append(text)
        for part in delta.get("tool_calls", ()):
            call = self._calls.setdefault(
                part["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = part.get("id") or call["id"]
            function = part.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""

    def whole(self, index: int, stop: str | None) -> dict[str, Any]:
        """The choice of a chat.completion. stop: the request's stop string that ended it."""
        text = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = [self._calls[i] for i in sorted(self._calls)]
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
            "stop_reason": stop,
        }
