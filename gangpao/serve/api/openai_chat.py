"""OpenAI's chat completions: a request's body -> a Chat, and an answer's events -> a chat.completion, or chunks of one.

Beside OpenAI's fields those of vLLM and llama.cpp's server are understood (constraints.py), switches for thinking under the names
that programs have for them, and the old functions and function_call. An assistant's message at the end is continued where the
request says so: continue_final_message, add_generation_prompt: false, or prefix: true in the message.
"""

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from gangpao.engine.thinking.options import MAX_BUDGET, NO_LIMIT, Thinking
from gangpao.serve.answers import answers
from gangpao.serve.answers.chat import Call, Chat, Json, Message
from gangpao.serve.answers.events import (
    CallArguments,
    CallBegan,
    Ended,
    Event,
    Finished,
    Logprobs,
    Started,
    Text,
    Thought,
)
from gangpao.serve.answers.forms import Form
from gangpao.serve.api import constraints, content, schema
from gangpao.serve.api.dialect import Body, Notes, left_out
from gangpao.serve.api.schema import ChatMessage, Many, Whole
from gangpao.serve.http import json_bounds
from gangpao.serve.http.errors import PLAIN, ApiError
from gangpao.serve.http.stream import DONE, sse
from gangpao.validation import Field

log = logging.getLogger("gangpao.serve")


class Reasoning(schema.Body):
    """How much to think, as other APIs write it."""

    effort: str | None = Field(None, max_length=32)
    enabled: bool | None = None
    type: str | None = None
    budget_tokens: Whole | None = schema.budget("Anthropic's name.")
    max_tokens: Whole | None = schema.budget("OpenRouter's name.")

    @property
    def budget(self) -> int | None:
        """Tokens that it may take, under either name."""
        return self.max_tokens if self.budget_tokens is None else self.budget_tokens


class ChatRequest(schema.Sampling):
    """POST /v1/chat/completions."""

    messages: Many[ChatMessage] = Field(min_length=1)
    max_tokens: Whole | None = schema.setting("max_tokens", f"{schema.UNLIMITED} -1 is that, too.", low=-1)
    max_completion_tokens: Whole | None = schema.setting("max_tokens", f"{schema.UNLIMITED} -1 is that, too.", low=-1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20, description="Alternatives a token; needs logprobs.")
    response_format: dict[str, Any] | None = None
    tools: Many[dict[str, Any] | None] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Many[dict[str, Any]] | None = Field(None, description="The old form of tools.")
    function_call: str | dict[str, Any] | None = Field(None, description="The old form of tool_choice.")
    reasoning_effort: str | None = Field(None, max_length=32, description="none and minimal switch thinking off.")
    enable_thinking: bool | None = None
    thinking: Reasoning | bool | None = None
    reasoning: Reasoning | None = None
    thinking_budget: Whole | None = schema.budget("The name of Qwen's API.")
    thinking_token_budget: Whole | None = schema.budget("The name of vLLM.")
    thinking_budget_tokens: Whole | None = schema.budget("A name of llama.cpp's server.")
    reasoning_budget: Whole | None = schema.budget("Another one.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the model's chat template.")
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def parse(body: Body) -> tuple[ChatRequest, Chat]:
    """The request as its fields and as a chat. Raises ApiError (400)."""
    asked = schema.parse(ChatRequest, body)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "needs logprobs: true", field="top_logprobs")
    notes = Notes()
    if extra := schema.unknown(body, ChatRequest, constraints.NAMES):
        log.info("fields that mean nothing here were ignored: %s", ", ".join(extra))
    form = None if asked.response_format is None else Form("json", asked.response_format)
    limits = constraints.read(body, form)
    tools, choice = _tools(asked, notes)
    messages = content.settled([_message(m, f"messages.{i}", notes) for i, m in enumerate(asked.messages)], notes)
    sampling = asked.given()
    if asked.max_completion_tokens is not None:
        sampling["max_tokens"] = asked.max_completion_tokens
    if sampling.get("max_tokens") == -1:
        del sampling["max_tokens"]
    return asked, Chat(
        messages=messages, model=asked.model, sampling=sampling,
        model_defaults=asked.model_defaults is True, tools=tools, tool_choice=choice,
        parallel=asked.parallel_tool_calls is not False and asked.functions is None,
        form=limits.form, ends=limits.ends, n=asked.n or 1,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        continues=_continues(asked), add_generation_prompt=asked.add_generation_prompt is not False,
        thinking=_thinking(asked), variables=asked.chat_template_kwargs or {},
        speculate=asked.speculate is not False, left_out=notes.all,
    )  # fmt: skip


def _continues(asked: ChatRequest) -> bool:
    """Whether the last message is the beginning of the answer."""
    last = asked.messages[-1]
    if last.role == "assistant" and not last.tool_calls:
        if asked.continue_final_message or last.prefix or asked.add_generation_prompt is False:
            return True
    elif asked.continue_final_message:
        raise ApiError(400, "the last message must be the assistant's text", field="continue_final_message")
    return False


def _thinking(asked: ChatRequest) -> Thinking:
    """What the request says of thinking, in any of the words for it; the template's own names win. Raises ApiError (400)."""
    said, other, own = asked.thinking, asked.reasoning, asked.chat_template_kwargs or {}
    on, effort = asked.enable_thinking, asked.reasoning_effort
    budgets = [
        own.get("thinking_budget"),
        asked.thinking_budget,
        asked.thinking_token_budget,
        asked.thinking_budget_tokens,
    ]
    budgets.append(asked.reasoning_budget)
    if isinstance(said, Reasoning):
        on = on if said.type not in ("enabled", "disabled") else said.type == "enabled"
        budgets.append(said.budget)
    elif said is not None:
        on = said
    if other is not None:
        on = on if other.enabled is None else other.enabled
        effort = effort or other.effort
        budgets.append(other.budget)
    for name in ("enable_thinking", "thinking"):
        on = own[name] if isinstance(own.get(name), bool) else on
    budget = next((one for one in budgets if one is not None), None)
    if budget is not None and (not isinstance(budget, int) or not NO_LIMIT <= budget <= MAX_BUDGET):
        raise ApiError(400, f"thinking_budget must be a whole number from {NO_LIMIT}", field="chat_template_kwargs")
    return Thinking.asked(on, effort, budget)


def _tools(asked: ChatRequest, notes: Notes) -> tuple[tuple[Json, ...], str | Json | None]:
    """Functions that may be called, and which: of tools, and of their old form."""
    old = [{"type": "function", "function": one} for one in asked.functions or ()]
    choice = asked.tool_choice
    if choice is None and asked.function_call is not None:
        named = asked.function_call
        choice = {"type": "function", "function": named} if isinstance(named, dict) else named
    return functions([*(asked.tools or ()), *old], notes), choice


def functions(tools: Sequence[Json | None], notes: Notes) -> tuple[Json, ...]:
    """Those of the tools that are functions; others are left out."""
    found = []
    for i, tool in enumerate(tools):
        kind = None if tool is None else tool.get("type", "function")
        if tool is None:
            notes.add(f"tools.{i}", "null is left out")
        elif isinstance(kind, str) and kind != "function":
            notes.add(f"tools.{i}", f"a tool of type {kind!r:.40} is left out")
        else:
            found.append(tool)
    return tuple(found)


def _message(message: ChatMessage, where: str, notes: Notes) -> Message:
    role = content.role_of(message.role, where, notes)
    said = message.content if role != "system" else content.without_attribution(message.content)
    text, images = content.read(said, where, notes)
    if "content" not in message.model_fields_set and role in ("system", "user"):
        raise ApiError(400, f"{where}: content is missing", param="messages")
    if message.content is None and message.refusal:
        text = message.refusal
    calls = [_call(call or {}, f"{where}.tool_calls.{i}", notes) for i, call in enumerate(message.tool_calls or ())]
    if message.function_call is not None:
        calls.append(_call({"function": message.function_call}, f"{where}.function_call", notes))
    return Message(role, text, images, tuple(c for c in calls if c), message.tool_call_id, message.name)


def _call(call: Body, where: str, notes: Notes) -> Call | None:
    custom = call.get("custom")
    function = custom if isinstance(custom, dict) else call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        notes.add(where, "a call without a function's name is left out")
        return None
    id = call.get("id")
    arguments = {"input": function.get("input")} if isinstance(custom, dict) else function.get("arguments")
    return Call(name, arguments_of(arguments, f"{where}: arguments", "messages"), id if isinstance(id, str) else "")


def arguments_of(arguments: Any, where: str, param: str) -> Any:
    """A call's arguments, which are JSON in a text, as a value; the text itself where it is no object. Raises ApiError (400) for
    more of it than may be parsed."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    raw = (arguments or "{}").encode("utf-8", "surrogatepass")
    try:
        json_bounds.check(raw, where)
    except ValueError as error:
        raise ApiError(400, str(error), param=param) from None
    try:
        found = json_bounds.loads(raw)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


# --- answers


class ChatWriter:
    """The chat.completion as it grows, and its chunks."""

    media_type = "text/event-stream"

    def __init__(self, asked: ChatRequest) -> None:
        self._usage_wanted = asked.usage_wanted
        self._n = asked.n or 1
        self._choices = [_Choice(i, bool(asked.logprobs), old=asked.functions is not None) for i in range(self._n)]
        self._head: Body = {}
        self._last: Body = {}
        self._left_out: Body = {}

    def write(self, event: Event) -> Iterator[Body]:
        """Take an event in; the chunks that it makes."""
        match event:
            case Started(model, prompt_tokens, notes):
                self._head = {
                    "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()),
                    "model": model, "system_fingerprint": answers.fingerprint(),
                }  # fmt: skip
                self._left_out = left_out(notes)
                for i in range(self._n):
                    first = self._chunk(i, {"role": "assistant", "content": "", "refusal": None})
                    yield {**first, "timings": {"prompt_tokens": prompt_tokens}, **(self._left_out if i == 0 else {})}
            case Ended():
                choice = self._choices[event.choice]
                logprobs = choice.end(event)
                last = self._chunk(event.choice, {}, logprobs=logprobs, **choice.ending)
                yield {**last, "timings": event.timings}
            case Finished(usage, timings):
                self._last = {"usage": usage, "timings": timings}
                if self._usage_wanted:
                    yield {**self._head, "choices": [], **self._last}
            case _:
                delta, logprobs = self._choices[event.choice].add(event)
                yield self._chunk(event.choice, delta, logprobs=logprobs)

    def _chunk(self, index: int, delta: Body, **more: Any) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**self._head, "choices": [choice], **({"usage": None} if self._usage_wanted else {})}

    def whole(self) -> Body:
        """The chat.completion of an answer that is over."""
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice.whole() for choice in self._choices], **self._last, **self._left_out}

    def frame(self, data: Body) -> bytes:
        """A chunk as an event."""
        return sse(data)

    def error(self, error: ApiError) -> bytes:
        """An error in the middle of a stream, as OpenAI's clients expect it."""
        return sse(PLAIN.body(error))

    def last(self) -> bytes:
        """OpenAI's mark of the end."""
        return DONE


class _Choice:
    """One of the n answers. old: a call is said as function_call, as functions were asked for."""

    def __init__(self, index: int, logprobs: bool, *, old: bool) -> None:
        self._index = index
        self._old = old
        self._thought: list[str] = []
        self._content: list[str] = []
        self._calls: list[Body] = []
        self._logprobs: list[Any] | None = [] if logprobs else None
        self.ending: Body = {}

    def add(self, event: Text | Thought | CallBegan | CallArguments) -> tuple[Body, Body | None]:
        """Take an event in; its delta, and the log-probabilities that go with it."""
        logprobs = self._new(event.logprobs)
        match event:
            case Thought(text):
                self._thought.append(text)
                return {"reasoning_content": text}, logprobs
            case Text(text):
                self._content.append(text)
                return {"content": text}, logprobs
            case CallBegan(id, name, index):
                function = {"name": name, "arguments": ""}
                self._calls.append({"id": id, "type": "function", "function": dict(function)})
                return self._delta({"index": index, "id": id, "type": "function", "function": function}), logprobs
            case CallArguments(text, index):
                self._calls[index]["function"]["arguments"] += text
                return self._delta({"index": index, "function": {"arguments": text}}), logprobs

    def _delta(self, call: Body) -> Body:
        return {"function_call": call["function"]} if self._old else {"tool_calls": [call]}

    def end(self, event: Ended) -> Body | None:
        """The choice is over; the log-probabilities that are left."""
        reason = "function_call" if self._old and event.reason == "tool_calls" else event.reason
        self.ending = {"finish_reason": reason, "stop_reason": event.stop}
        return self._new(event.logprobs)

    def _new(self, logprobs: Logprobs) -> Body | None:
        if self._logprobs is None or not logprobs:
            return None
        self._logprobs += logprobs
        return {"content": list(logprobs), "refusal": None}

    def whole(self) -> Body:
        """The choice of a chat.completion."""
        text = "".join(self._content)
        message: Body = {"role": "assistant", "content": text, "refusal": None}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._calls:
            message["content"] = text or None
            message |= {"function_call": self._calls[0]["function"]} if self._old else {"tool_calls": self._calls}
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, **self.ending}
