"""A chat in no API's words, and the way from it to an answer: **start reading here**.

    Chat           messages, functions, the form of the answer, sampling; the dialects (serve/api) make one from a request's body
    answer         a Chat -> Started, Text, CallBegan ..., Finished (events.py), which the dialects write in their own way
    prompt_ids     a Chat -> token ids of its prompt

Messages become a prompt by the model's chat template; functions and a form become a constraint and a parser (grammar.py,
tool_calls.py, forms.py). A history that another program wrote never ends a conversation: a result without its call is read
as text, and where a template takes turns or a system message in one order only, the messages are brought into it.

What it gives up: images are looked at and then refused in the latest question, and left out of what came before it, because no
model here sees yet.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gangpao.engine.answer import FinishReason, Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.sequences import Constraint, Handle, Request
from gangpao.serve.answers import answers, forms, grammar, images, tool_calls
from gangpao.serve.answers.answers import Answers
from gangpao.serve.answers.ends import EndRule, Ends
from gangpao.serve.answers.events import (
    CallArguments,
    CallBegan,
    Ended,
    Event,
    Finished,
    Logprobs,
    Reason,
    Started,
    Text,
    Thought,
)
from gangpao.serve.answers.forms import Form
from gangpao.serve.answers.logprobs import chat_form
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server
from gangpao.text.thoughts import Splitter

log = logging.getLogger("gangpao.serve")

Json = Mapping[str, Any]
Role = Literal["system", "user", "assistant", "tool"]
MAX_TOKENS: int = SamplingParams.__dataclass_fields__["max_tokens"].metadata["high"]


class Image(NamedTuple):
    """An image as it came: an address (data:, https:), or its bytes in base64."""

    url: str = ""
    base64: str = ""


class Call(NamedTuple):
    """A call of an earlier answer. arguments: a JSON value, or the text as it came where that is none."""

    name: str
    arguments: Any
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. calls: what the assistant called; call_id and name: what a tool's result answers."""

    role: Role
    content: str = ""
    images: tuple[Image, ...] = ()
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A request, checked as far as that goes without a model.

    sampling: settings that the request gave, by SamplingParams' names; model_defaults: whether the rest is what the model
    recommends, instead of nothing at all. tools: functions as chat templates take them, OpenAI's
    form; tool_choice: none, auto, required or one of them; parallel: whether several may be called. logprobs: alternatives a
    token. continues: the last message is the beginning of the answer. variables: switches of the model's chat template. left_out:
    what the dialect could not use, for the log and for the answer.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    model_defaults: bool = False
    tools: tuple[Json, ...] = ()
    tool_choice: str | Json | None = None
    parallel: bool = True
    form: Form | None = None
    n: int = 1
    logprobs: int | None = None
    continues: bool = False
    add_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    ends: Ends = field(default_factory=Ends)
    speculate: bool = True
    left_out: tuple[str, ...] = ()


def thinking(on: bool | None, effort: str | None = None) -> dict[str, Any]:
    """A switch for thinking as variables of a template, under the names that templates have for it; none where it is not set.

    effort: how much, in words; "none" and "minimal" are off, others on.
    """
    if effort is not None and on is None:
        on = effort not in ("none", "minimal")
    switch = {} if on is None else {"enable_thinking": on, "thinking": on}
    return switch | ({} if effort is None else {"reasoning_effort": effort})


async def answer(server: Server, chat: Chat, client: str) -> AsyncGenerator[Event, None]:
    """The answer's events. What is wrong with the request is raised (ApiError) before the first; closing it cancels the answer."""
    async with contextlib.AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(server.models.use(chat.model))
        requests, more = await _requests(server, loaded, chat, client)
        if left_out := (*chat.left_out, *more):
            log.info("not used of a request: %s", "; ".join(left_out))
        running = stack.enter_context(Answers(loaded, requests, server.metrics))
        yield Started(loaded.name, len(requests[0].prompt_ids), left_out)
        choices = [_Choice(loaded, chat, request, i) for i, request in enumerate(requests)]
        async for i, piece in running:
            for event in choices[i].push(piece):
                yield event
            if piece.finish_reason:
                stop = _stop(requests[i], running.handles[i])
                yield choices[i].ended(stop, answers.timings(server, running.handles))
        counts = answers.usage(running.handles, running.handles[:1], sum(c.thought_tokens for c in choices))
        yield Finished(counts, answers.timings(server, running.handles))


async def prompt_ids(server: Server, chat: Chat) -> list[int]:
    """Token ids of the prompt that this chat has."""
    async with server.models.use(chat.model) as loaded:
        messages, _ = await _messages(server, loaded, chat)
        return await _encode(loaded, chat, messages)


# --- a request


async def _requests(server: Server, loaded: LoadedModel, chat: Chat, client: str) -> tuple[list[Request], list[str]]:
    """What to submit, one for each choice, and what else of the chat was left out."""
    engine = loaded.engine
    params = _params(chat, engine)
    messages, left_out = await _messages(server, loaded, chat)
    rules = await constraints_of(loaded, chat)  # first: it is over in milliseconds
    if (held := _inner(rules[0][0])) is not None:
        left_out += map(str, held.loosened)
    ids = await _encode(loaded, chat, messages)
    answers.check_length(loaded, len(ids))
    return [
        # Where a grammar says all of the answer it also says the end: a turn's mark in a JSON string is only text.
        Request(
            ids,
            p,
            stop=() if grammar_whole else engine.template.stop,
            client=client,
            constraint=rule,
            continues=chat.continues and bool(chat.messages[-1].content),
            speculate=chat.speculate,
            adapters=loaded.adapters,
        )
        for p, (rule, grammar_whole) in zip(answers.choices_of(params, chat.n), rules, strict=True)
    ], left_out


def _params(chat: Chat, engine: Engine) -> SamplingParams:
    """The engine's settings; an answer without a limit goes on until the model ends it or the context is full."""
    given = {"max_tokens": min(engine.context, MAX_TOKENS), **chat.sampling}
    make = engine.recommended if chat.model_defaults else SamplingParams
    try:
        return make(**given, logprobs=chat.logprobs)
    except ValueError as error:
        raise field_error(error, given) from None


def field_error(error: ValueError, fields: Mapping[str, Any] | Sequence[str]) -> ApiError:
    """What a function says that names the field to blame at the beginning of its message, as "stop: ..." or "stop must ..."."""
    message = str(error)[:500]
    for name in fields:
        for gap in (": ", " "):
            if message.startswith(name + gap):
                return ApiError(400, message[len(name + gap) :], field=name)
    return ApiError(400, message, param=next((name for name in fields if message.startswith(name)), None))


async def _messages(server: Server, loaded: LoadedModel, chat: Chat) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages as chat templates take them, and what was left out of them. Raises ApiError for a text that is too long."""
    if not chat.messages:
        raise ApiError(400, "at least one is needed", field="messages")
    await _look(server, chat)
    out: list[dict[str, Any]] = []
    left_out = []
    for i, message in enumerate(chat.messages):
        content = message.content
        if message.images:
            left_out.append(f"messages.{i}: {len(message.images)} images: this model reads text only")
            content = f"{content}\n[image left out]".lstrip()
        if message.role == "tool" and not (out and (out[-1]["role"] == "tool" or out[-1].get("tool_calls"))):
            left_out.append(f"messages.{i}: a result without its call is read as text")
            out.append({"role": "user", "content": f"Result of {message.name or 'a tool'}:\n{content}"})
            continue
        out.append(_turn(message, content))
    shown = chat.tools if chat.tool_choice != "none" else None
    answers.check_text(loaded, _letters([[(m["content"], m.get("tool_calls")) for m in out], shown]))
    return out, left_out


def _turn(message: Message, content: str) -> dict[str, Any]:
    one: dict[str, Any] = {"role": message.role, "content": content}
    if message.calls:
        one["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.calls
        ]  # fmt: skip
    if message.call_id is not None:
        one["tool_call_id"] = message.call_id
    if message.name is not None:
        one["name"] = message.name
    return one


async def _look(server: Server, chat: Chat) -> None:
    """Refuse images in the latest question: those that are none or too large by what is wrong with them, others all the same."""
    last = max((i for i, m in enumerate(chat.messages) if m.role == "user"), default=0)
    for i, message in enumerate(chat.messages[last:], last):
        if message.role != "user":
            continue
        for image in message.images:
            try:
                await asyncio.to_thread(images.load, image.url, server.settings.allow_image_hosts, image.base64)
            except ValueError as error:
                raise ApiError(400, f"messages.{i}: {error}"[:300], param="messages", code="bad_image") from None
            raise ApiError(
                400, f"messages.{i}: this model does not see: it reads text only", param="messages", code="no_vision"
            )


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


async def _encode(loaded: LoadedModel, chat: Chat, messages: list[dict[str, Any]]) -> list[int]:
    options = {
        "continue_final": chat.continues,
        "add_generation_prompt": chat.add_generation_prompt,
        "variables": chat.variables,
    }

    def work(engine: Engine) -> list[int]:
        try:
            return tool_calls.encode(engine, messages, chat.tools, chat.tool_choice, **options)
        except ValueError:
            for ordered in _orders(messages):
                with contextlib.suppress(ValueError):
                    return tool_calls.encode(engine, ordered, chat.tools, chat.tool_choice, **options)
            raise

    return await answers.prepare(loaded, work, loaded.engine)


def _orders(messages: Sequence[Json]) -> Iterator[list[dict[str, Any]]]:
    """The same conversation for templates that take one system message at the beginning and turns of two sides, and for those that
    take no system message at all."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn = dict(message)
        if turn["role"] == "system" and any(t["role"] != "system" for t in turns):
            turn["role"] = "user"
        before = turns[-1] if turns else None
        if before and before["role"] == turn["role"] != "tool" and not before.get("tool_calls"):
            before.update({**turn, "content": "\n\n".join(filter(None, (before["content"], turn["content"])))})
        else:
            turns.append(turn)
    yield [dict(turn) for turn in turns]
    if turns[0]["role"] == "system" and len(turns) > 1 and turns[1]["role"] == "user":
        first, second = turns[0]["content"], turns[1]["content"]
        yield [{**turns[1], "content": "\n\n".join(filter(None, (first, second)))}, *turns[2:]]


async def constraints_of(loaded: LoadedModel, chat: Chat) -> list[tuple[Constraint | None, bool]]:
    """For each choice what its tokens must keep to, and whether that is a grammar of all of the answer."""
    if not chat.form and not chat.tools and not chat.ends.given and chat.tool_choice in (None, "auto", "none"):
        return [(None, False)] * chat.n

    def one() -> tuple[Constraint | None, bool]:
        rule = _grammar(loaded.engine, chat)
        if not chat.ends.given:
            return rule, rule is not None and rule.whole
        if rule is not None and (chat.ends.min_tokens or chat.ends.ignore_eos):
            name = "min_tokens" if chat.ends.min_tokens else "ignore_eos"
            raise ApiError(400, "a form of the answer, or functions, say themselves where it ends", field=name)
        vocab = loaded.engine.model.config.vocab_size
        if any(not 0 <= token < vocab for token in chat.ends.stop_ids):
            raise ApiError(400, f"token ids go from 0 to {vocab - 1}", field="stop_token_ids")
        ends = [i for i in loaded.engine.tokenizer.end_ids if i < vocab]
        return EndRule(chat.ends, ends, rule), rule is not None and rule.whole

    def work() -> list[tuple[Constraint | None, bool]]:
        return [one() for _ in range(chat.n)]

    try:
        return await answers.prepare(loaded, work)
    except ApiError as error:
        if error.field is not None or error.status != 400:
            raise
        message = error.message
        if message.startswith(_EITHER) and not (chat.form and chat.tools):
            message = ("tools: " if chat.tools else "response_format: ") + message.removeprefix(_EITHER)
        found = field_error(ValueError(message), ("response_format", "tools", "tool_choice"))
        if found.field == "response_format" and chat.form:
            raise ApiError(400, found.text, field=chat.form.field) from None
        raise found from None


_EITHER = "response_format or tools: "  # a grammar that does not compile says no more


def _grammar(engine: Engine, chat: Chat) -> grammar.GrammarConstraint | None:
    form = chat.form
    if form is None or form.kind == "json":
        shape = None if form is None else form.value
        return grammar.constraint_for(engine, shape, chat.tools, chat.tool_choice, chat.parallel)
    if tool_calls.offered(chat.tools, chat.tool_choice).functions:
        raise ApiError(
            400, "cannot be kept together with functions; tool_choice none switches them off", field=form.field
        )
    try:
        return grammar.text_constraint(engine, forms.lark(form))
    except ValueError as error:
        raise ApiError(400, str(error)[:300], field=form.field) from None


# --- an answer


def _stop(request: Request, handle: Handle) -> str | int | None:
    """Which of the request's own stop strings or tokens ended the answer (vLLM's stop_reason); a format's turn marks are none."""
    if isinstance(request.constraint, EndRule) and request.constraint.stopped_by is not None:
        return request.constraint.stopped_by
    return handle.stopped_by if handle.stopped_by in request.params.stop else None


class _Choice:
    """One of the n answers while it grows: what is a thought, what a call, and which log-probabilities are still to go out."""

    def __init__(self, loaded: LoadedModel, chat: Chat, request: Request, index: int) -> None:
        self._tokenizer = loaded.engine.tokenizer
        self._splitter = _splitter(loaded.engine, chat, request)
        offered = chat.tools and chat.tool_choice != "none"
        self._parser = (
            # A template is read for its way of writing calls where there may be any: that takes a tenth of a second once.
            tool_calls.ToolParser(chat.tools, chat.tool_choice, loaded.engine.template.calls) if offered else None
        )
        self._index = index
        self._wants_logprobs = chat.logprobs is not None
        self._logprobs: list[dict[str, Any]] = []
        self._reason: FinishReason | None = None
        self.thought_tokens = 0

    def push(self, piece: Piece) -> Iterator[Event]:
        """Take a piece in; what it makes of text, thought and calls."""
        if self._wants_logprobs:
            self._logprobs += chat_form(self._tokenizer, piece.logprobs)
        self._reason = piece.finish_reason
        thinking = self._splitter.thinking
        said = self._splitter.push(piece.text)
        self.thought_tokens += len(piece.ids) if thinking or self._splitter.thinking else 0
        if piece.finish_reason:
            said += self._splitter.finish()
        for one in said:
            if one.thought:
                yield Thought(one.text, self._index, self._new_logprobs())
            elif self._parser:
                yield from self._parsed(self._parser.push(one.text))
            else:
                yield Text(one.text, self._index, self._new_logprobs())
        if piece.finish_reason and self._parser:
            yield from self._parsed(self._parser.finish())

    def _parsed(self, deltas: Sequence[Json]) -> Iterator[Event]:
        for delta in deltas:
            if text := delta.get("content"):
                yield Text(text, self._index, self._new_logprobs())
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if "name" in function:
                    yield CallBegan(call["id"], function["name"], call["index"], self._index, self._new_logprobs())
                if function["arguments"]:
                    yield CallArguments(function["arguments"], call["index"], self._index, self._new_logprobs())

    def ended(self, stop: str | int | None, timings: Json) -> Ended:
        """The choice's last event. An answer that calls and was not cut off ended with its calls."""
        called = self._parser is not None and self._parser.called
        reason: Reason = "length" if self._reason == "length" else "tool_calls" if called else "stop"
        return Ended(reason, stop, self._index, self._new_logprobs(), timings)

    def _new_logprobs(self) -> Logprobs:
        found, self._logprobs = self._logprobs, []
        return found


def _inner(constraint: Constraint | None) -> grammar.GrammarConstraint | None:
    """The grammar of a constraint, where it has one."""
    inner = constraint.inner if isinstance(constraint, EndRule) else constraint
    return inner if isinstance(inner, grammar.GrammarConstraint) else None


def _splitter(engine: Engine, chat: Chat, request: Request) -> Splitter:
    """What tells thought and answer apart. Where a grammar says all of the answer, or the answer was begun behind a thought, there
    is no place for one."""
    marks = engine.template.thoughts
    held = _inner(request.constraint)
    if marks is None or (held is not None and held.whole):
        return Splitter(None)
    begun = chat.messages[-1].content if chat.continues else ""
    if begun.strip():
        opened = marks.begin in begun and marks.end not in begun
        return Splitter(marks, opened=True) if opened else Splitter(None)
    return engine.splitter(request.prompt_ids)
