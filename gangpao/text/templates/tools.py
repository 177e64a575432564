"""Functions that a model may call, said in its chat format: descriptions, earlier calls, and their results.

A conversation with tools becomes one without: descriptions go behind the system message, calls into the assistant's turn and
results into a user's turn, each between the marks that Hermes and Qwen2.5 use. Marks are markup; descriptions, arguments and
results are data, so that no web page a tool returned can end its result and begin a call.

How a checkpoint was taught to read descriptions is in its own template, so that is where the words come from: the template
is rendered (in the worker) on a conversation with two functions, and what stands around them is its form. The form is
taken when a second conversation, with calls and results, comes out of ours as it comes out of the template. A checkpoint
whose template knows no tools, or says calls in another way, gets words of our own around the same marks.

A template that writes calls in another way of its own (call_format.py) renders such a conversation itself.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.formats import Family
from gangpao.text.templates.render import Part, render_parts

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
MARKS = (CALL, CALL_END, RESULT, RESULT_END)
NAME, ARGUMENTS = '{"name": "', '", "arguments": '  # a call is NAME + name + ARGUMENTS + a JSON object + "}"


class Wants(Protocol):
    """How a template takes calls of earlier answers (call_format.CallFormat): the content of an answer that only calls,
    arguments as text, identifiers of nine letters and digits, several calls in a turn."""

    @property
    def no_content(self) -> str | None: ...
    @property
    def text_arguments(self) -> bool: ...
    @property
    def short_ids(self) -> bool: ...
    @property
    def several(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ToolForm:
    """The text before the first function's description, between two, and behind the last."""

    before: str
    between: str
    after: str


OWN = ToolForm(
    "\n\n# Functions\n\nYou can use these functions, each described by a line of JSON:\n",
    "\n",
    f"\n\nTo use one, write its name and its arguments in this form, and nothing after it:\n{CALL}\n"
    f'{NAME}NAME{ARGUMENTS}{{"ARGUMENT": "VALUE"}}}}\n{CALL_END}\nIts result will be between {RESULT} and {RESULT_END}. '
    "Use a function only where it helps; answer everything else in plain words.",
)


def needs_tools(messages: Messages, tools: Tools | None) -> bool:
    """Whether a conversation is more than words: it offers functions, calls one, or holds a result."""
    return bool(tools) or any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)


def without_tools(messages: Messages, tools: Tools | None, form: ToolForm, family: Family | None) -> Messages:
    """The same conversation with the roles system, user and assistant only; contents may be sequences of Parts.

    Where the family has no system message, descriptions open the first question. Raises ValueError for a call without a name.
    """
    turns: list[dict[str, Any]] = []
    results = False
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            if not results:
                turns.append({"role": "user", "content": []})
            turns[-1]["content"] += _result(content, first=not results)
        elif role == "assistant" and message.get("tool_calls"):
            turns.append({"role": role, "content": _calls(content, message["tool_calls"], f"message {i}")})
        else:
            turns.append({"role": role, "content": content})
        results = role == "tool"
    if not tools:
        return turns
    if turns[0]["role"] == "system":
        turns[0]["content"] = _described(turns[0]["content"], tools, form)
    elif family is not None and family.system is None and family.system_in_user is None:
        said = turns[0]["content"]
        said = [Part(said, markup=False)] if isinstance(said, str) else said
        turns[0]["content"] = [*_described("", tools, form), Part("\n\n", markup=True), *said]
    else:
        default = (family.default_system if family else None) or ""
        turns.insert(0, {"role": "system", "content": _described(default, tools, form)})
    return turns


def for_template(messages: Messages, wants: "Wants") -> Messages:
    """Messages as a template wants them. Raises ValueError for a call without a name."""
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        content = message.get("content") or ""
        turn = {**message, "content": content}
        if message.get("tool_call_id") is not None and wants.short_ids:
            turn["tool_call_id"] = _short_id(message["tool_call_id"])
        if message.get("tool_calls"):
            turn["content"] = content or wants.no_content
            turn["tool_calls"] = [
                _call(call, name, arguments, wants)
                for call, name, arguments in _checked(message["tool_calls"], f"message {i}")
            ]
        turns.append(turn)
    return turns if wants.several else _one_by_one(turns)


def _call(call: Mapping[str, Any], name: str, arguments: object, wants: "Wants") -> dict[str, Any]:
    known = _object(arguments)
    if wants.text_arguments and not isinstance(known, str):
        known = as_json(known)
    ident = _short_id(call.get("id")) if wants.short_ids else call.get("id")
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": known}}


def _short_id(ident: object) -> str:
    """Nine letters and digits for an identifier: itself, if it is that."""
    text = str(ident)
    if re.fullmatch("[A-Za-z0-9]{9}", text):
        return text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def _one_by_one(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of several calls of a turn as a turn, with its result behind it, for templates that have one call a turn."""
    out: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool" and pending:
            same = [p for p in pending if p["tool_calls"][0]["id"] == turn.get("tool_call_id")]
            called = (same or pending)[0]
            pending.remove(called)
            out += [called, turn]
            continue
        out += pending
        calls = turn.get("tool_calls") or []
        pending = [
            {**turn, "content": turn["content"] if i == 0 else "", "tool_calls": [c]} for i, c in enumerate(calls)
        ]
        out += [] if calls else [turn]
    return out + pending


def _described(system: str, tools: Tools, form: ToolForm) -> list[Part]:
    before = form.before if system else form.before.lstrip("\n")
    parts = [Part(system, markup=False), Part(before, markup=True)]
    for i, tool in enumerate(tools):
        parts += [Part(form.between if i else "", markup=True), Part(as_json(tool), markup=False)]
    return [*parts, Part(form.after, markup=True)]


def _calls(content: str, calls: object, where: str) -> list[Part]:
    parts = [Part(content, markup=False)]
    for _, name, arguments in _checked(calls, where):
        known = _object(arguments)
        said = known if isinstance(known, str) else as_json(known)
        parts += [
            Part(("\n" if any(p.text for p in parts) else "") + CALL + "\n", markup=True),
            Part(f"{NAME}{as_json(name)[1:-1]}{ARGUMENTS}{said}}}", markup=False),
            Part("\n" + CALL_END, markup=True),
        ]
    return parts


def _checked(calls: object, where: str) -> Iterator[tuple[Mapping[str, Any], str, object]]:
    """(call, name, arguments) of each call."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ValueError(f"{where}: tool_calls must be a list")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            raise ValueError(f'{where}: a tool call must look like {{"function": {{"name": ..., "arguments": ...}}}}')
        yield call, name, function.get("arguments")


def _result(content: str, *, first: bool) -> list[Part]:
    return [
        Part(("" if first else "\n") + RESULT + "\n", markup=True),
        Part(content, markup=False),
        Part("\n" + RESULT_END, markup=True),
    ]


def _object(arguments: object) -> object:
    """Arguments as an object, to be said as the model is made to say them; the text itself where it is broken JSON."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def as_json(value: object) -> str:
    """JSON with spaces after commas and colons and every character as itself, as templates write it."""
    return json.dumps(value, ensure_ascii=False)


# --- what a checkpoint's own template says

_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Ä?", "parameters": {"type": "object"}}}
    for name in ("alpha", "beta")
]
_CALLS = [{"id": f"call{i}", "type": "function", "function": {"name": "alpha", "arguments": {"a": i}}} for i in (1, 2)]
_SYSTEM = {"role": "system", "content": "Be brief."}
_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "", "tool_calls": _CALLS},
    {"role": "tool", "content": "one", "tool_call_id": "call1"},
    {"role": "tool", "content": "two", "tool_call_id": "call2"},
    {"role": "assistant", "content": "So.", "tool_calls": _CALLS[:1]},
    {"role": "tool", "content": "three", "tool_call_id": "call1"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And?"},
]


@functools.lru_cache(maxsize=16)
def form_of(source: str | None, special: tuple[tuple[str, str], ...], family: Family) -> ToolForm:
    """How the template `source` describes functions, if it writes calls and results as we do; else OWN."""
    if source is None or CALL not in source or family.system is None:
        return OWN
    text = _foreign(source, special, [_SYSTEM, _TALK[0]])
    head, system, rest = (text or "").partition(_SYSTEM["content"])
    before, first, rest = rest.partition(as_json(_TOOLS[0]))
    between, second, rest = rest.partition(as_json(_TOOLS[1]))
    after, end, _ = rest.partition(family.system.after)
    if not (head and system and first and second and end):
        return OWN
    form = ToolForm(before, between, after)
    for talk in ([_SYSTEM, *_TALK], _TALK):
        turns = without_tools(talk, _TOOLS, form, family)
        ours = "".join(part.text for part in render_parts(family, turns, True))
        if ours != _foreign(source, special, talk):
            return OWN
    return form


def _foreign(source: str, special: tuple[tuple[str, str], ...], messages: Messages) -> str | None:
    context = {
        "messages": messages, "add_generation_prompt": True, "tools": _TOOLS, "documents": None, "bos_token": "",
        "eos_token": "", **dict(special),
    }  # fmt: skip
    try:
        return sandbox_parent.shared().render(source, context)
    except sandbox_parent.TemplateError:
        return None
