"""A chat in no API's words, and the way from it to an answer: **start reading here**.

    Chat           messages, functions, the form of the answer, sampling; the dialects (serve/api) make one from a request's body
    answer         a Chat -> Started, Text, CallBegan ..., Finished (events.py), which the dialects write in their own way
    prompt_ids     a Chat -> token ids of its prompt

Messages become a prompt by the model's chat template; functions and a form become a constraint and a parser (grammar.py,
tool_calls.py, forms.py). A history that another program wrote never ends a conversation: a result without its call is read
as text, and where a template takes turns or a system message in one order only, the messages are brought into it.

A model that reads text only refuses images in the latest question, and leaves them out of what came before it.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from gangpao.engine.answer import FinishReason, Piece
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import LEFT_OUT
from gangpao.engine.sample import SamplingParams
from gangpao.engine.sequences import Constraint, Handle, Request
from gangpao.engine.sessions.shift import ContextShift
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID, ThoughtRule, rule_of
from gangpao.optional import MissingPackage
from gangpao.serve.answers import answers, forms, grammar, pictures, tool_calls
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
from gangpao.serve.answers.pictures import Image, Shown
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server
from gangpao.text.thoughts import Splitter

log = logging.getLogger("gangpao.serve")

Json = Mapping[str, Any]
Role = Literal["system", "user", "assistant", "tool"]
MAX_TOKENS: int = SamplingParams.__dataclass_fields__["max_tokens"].metadata["high"]


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
    token. continues: the last message is the beginning of the answer. thinking: whether and how much it thinks; variables:
    further switches of the model's chat template. left_out:
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
    thinking: Thinking = NOTHING_SAID
    variables: Mapping[str, Any] = field(default_factory=dict)
    ends: Ends = field(default_factory=Ends)
    speculate: bool = True
    left_out: tuple[str, ...] = ()


async def answer(server: Server, chat: Chat, client: str) -> AsyncGenerator[Event, None]:
    """The answer's events. What is wrong with the request is raised (ApiError) before the first; closing it cancels the answer."""
    chat = _with_defaults(server, chat)
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
        counts = answers.usage(running.handles, running.handles[:1])
        yield Finished(counts, answers.timings(server, running.handles))


async def prompt_ids(server: Server, chat: Chat) -> list[int]:
    """Token ids of the prompt that this chat has. Nothing is encoded: the rows of a picture are so many of the token that its
    model's own prompts have in their places."""
    chat = _with_defaults(server, chat)
    async with server.models.use(chat.model) as loaded:
        messages, _, shown = await _messages(server, loaded, chat)
        return loaded.engine.without_rows(await _encode(loaded, chat, messages, shown))


# --- a request


def _with_defaults(server: Server, chat: Chat) -> Chat:
    """The chat with the server's own word on thinking where the request has none, and without tools that cannot be offered."""
    tools, notes = tool_calls.sound(chat.tools or (), chat.tool_choice)
    thinking = chat.thinking.over(server.settings.thinking)
    return replace(chat, thinking=thinking, tools=tools, left_out=(*chat.left_out, *notes))


async def _requests(server: Server, loaded: LoadedModel, chat: Chat, client: str) -> tuple[list[Request], list[str]]:
    """What to submit, one for each choice, and what else of the chat was left out."""
    engine = loaded.engine
    params = _params(chat, engine)
    messages, left_out, shown = await _messages(server, loaded, chat)
    rules = await constraints_of(loaded, chat)  # first: it is over in milliseconds
    if (held := _inner(rules[0][0])) is not None:
        left_out += map(str, held.loosened)
    ids = await _encode(loaded, chat, messages, shown)
    axes = engine.axes(ids, shown.pictures.values()) if shown.pictures else None
    shift = await _shift(loaded, chat, messages, shown) if loaded.limits.context_shift and axes is None else None
    if shift is None:
        answers.check_length(loaded, len(ids))
    hold = await pictures.encode(loaded, shown)
    rule = await answers.prepare(loaded, _thought_rule, engine, chat, ids, held)
    return [
        # Where a grammar says all of the answer it also says the end: a turn's mark in a JSON string is only text.
        Request(
            ids,
            p,
            stop=() if grammar_whole else engine.template.stop,
            client=client,
            constraint=constraint,
            continues=chat.continues and bool(chat.messages[-1].content),
            speculate=chat.speculate,
            adapters=loaded.adapters,
            pictures=hold,
            axes=axes,
            shift=shift,
            thinking=rule,
        )
        for p, (constraint, grammar_whole) in zip(answers.choices_of(params, chat.n), rules, strict=True)
    ], left_out


async def _shift(loaded: LoadedModel, chat: Chat, messages: Sequence[Json], shown: Shown) -> ContextShift | None:
    """What drops the oldest turns behind the system message, its pictures and the functions, when the context is full."""
    head = list(itertools.takewhile(lambda message: message["role"] == "system", messages))

    def encode(talk: Sequence[Json]) -> list[int]:
        options = {"variables": chat.variables, "pictures": shown.pictures}
        return tool_calls.encode(loaded.engine, talk, chat.tools, chat.tool_choice, **options)

    return await answers.prepare(loaded, loaded.engine.shift, head, encode)


def _params(chat: Chat, engine: Engine) -> SamplingParams:
    """The engine's settings; an answer without a limit goes on until the model ends it or the context is full."""
    given = {"max_tokens": min(engine.context, MAX_TOKENS), **chat.sampling}
    given |= {"logprobs": chat.logprobs}
    try:
        if chat.model_defaults:
            return engine.recommended(thinking=chat.thinking.on, **given)
        return SamplingParams(**given)
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


async def _messages(server: Server, loaded: LoadedModel, chat: Chat) -> tuple[list[dict[str, Any]], list[str], Shown]:
    """Messages as chat templates take them, what was left out of them, and their pictures, for which characters stand in their
    contents. Raises ApiError for a text that is too long."""
    if not chat.messages:
        raise ApiError(400, "at least one is needed", field="messages")
    sees = loaded.engine.seeing is not None
    shown = await _shown(server, loaded.engine, chat) if sees else Shown()
    if not sees:
        await _look(server, chat)
    characters = iter(shown.pictures)
    out: list[dict[str, Any]] = []
    left_out = []
    for i, message in enumerate(chat.messages):
        content = message.content
        if sees:
            content = pictures.put_in(content, message.images, [next(characters) for _ in message.images])
        elif message.images:
            left_out.append(f"messages.{i}: {len(message.images)} images: this model reads text only")
            content = f"{content}\n{LEFT_OUT}".lstrip()
        if message.role == "tool" and not (out and (out[-1]["role"] == "tool" or out[-1].get("tool_calls"))):
            left_out.append(f"messages.{i}: a result without its call is read as text")
            out.append({"role": "user", "content": f"Result of {message.name or 'a tool'}:\n{content}"})
            continue
        out.append(_turn(message, content))
    tools = chat.tools if chat.tool_choice != "none" else None
    size = _letters([[(m["content"], m.get("tool_calls")) for m in out], tools])
    if loaded.limits.context_shift:  # what is too long is cut
        answers.check_size(size)
    else:
        answers.check_text(loaded, size)
    return out, left_out, shown


async def _shown(server: Server, engine: Engine, chat: Chat) -> Shown:
    """All pictures of the chat. Raises ApiError (400) for one that cannot be used."""
    images = [
        (f"messages.{i}" + (f", image {n}" if len(message.images) > 1 else ""), image)
        for i, message in enumerate(chat.messages)
        for n, image in enumerate(message.images, 1)
    ]
    said = [[(m.content, m.calls, m.name) for m in chat.messages], chat.tools]
    return await pictures.load(engine, images, server.settings.allow_image_hosts, said)


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
            if not image.clip:  # nothing is decoded for nobody
                await asyncio.to_thread(pictures.look_at, image, server.settings.allow_image_hosts, f"messages.{i}")
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


async def _encode(loaded: LoadedModel, chat: Chat, messages: list[dict[str, Any]], shown: Shown) -> list[int]:
    options = {
        "pictures": shown.pictures,
        "continue_final": chat.continues,
        "add_generation_prompt": chat.add_generation_prompt,
        "variables": {**chat.thinking.variables(), **chat.variables},
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
        try:
            rule = _grammar(loaded.engine, chat)
        except MissingPackage as error:
            raise ApiError(501, str(error)) from None
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
    except MissingPackage:
        raise
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
        self._splitter = _splitter(request.thinking)
        offered = chat.tools and chat.tool_choice != "none"
        self._parser = (
            # A template is read for its way of writing calls where there may be any: that takes a tenth of a second once.
            tool_calls.ToolParser(chat.tools, chat.tool_choice, loaded.engine.template.calls) if offered else None
        )
        self._index = index
        self._wants_logprobs = chat.logprobs is not None
        self._logprobs: list[dict[str, Any]] = []
        self._reason: FinishReason | None = None

    def push(self, piece: Piece) -> Iterator[Event]:
        """Take a piece in; what it makes of text, thought and calls."""
        if self._wants_logprobs:
            self._logprobs += chat_form(self._tokenizer, piece.logprobs)
        self._reason = piece.finish_reason
        said = self._splitter.push(piece.text)
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


def _thought_rule(
    engine: Engine, chat: Chat, ids: Sequence[int], held: grammar.GrammarConstraint | None
) -> ThoughtRule | None:
    """How an answer may think; None where there is no place for a thought: the answer was begun behind one, or a grammar says all
    of it and nobody asked for a thought. One that the prompt opened is closed at once then."""
    rule = rule_of(engine.template, engine.tokenizer, ids, chat.thinking)
    if rule is None:
        return None
    begun = chat.messages[-1].content if chat.continues else ""
    if begun.strip():
        if rule.marks.begin not in begun or rule.marks.end in begun:
            return None
        rule = replace(rule, opened=True)
    if held is None or not held.whole:
        return replace(rule, form="none" if held is None else "free")
    if chat.thinking.on:
        return replace(rule, form="whole", open_first=True)
    return replace(rule, form="whole", said=Thinking(think=False)) if rule.opened else None


def _splitter(rule: ThoughtRule | None) -> Splitter:
    """What tells thought and answer apart."""
    return Splitter(None) if rule is None else Splitter(rule.marks, opened=rule.opened)
