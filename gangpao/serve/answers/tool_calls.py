"""Functions of a chat request: checked, put into the prompt, and read out of the answer while it streams.

    sound        the request's tools -> those that can be offered, and notes on the others
    offered      the request's tools and tool_choice -> the functions that may be called, and whether one must be
    encode       messages and tools -> prompt ids
    ToolParser   the answer's text, piece by piece -> OpenAI's deltas: words, then calls with their arguments in pieces

An answer that may call is text up to the mark of the model's own format (text/templates/call_format.py), whose arguments a grammar
holds to the function's schema (grammar.py). The parser does not rely on that: white space may differ, and it knows the calls of
models that forget the mark, a call's JSON at the start of the answer, perhaps in a code fence. What turns out to be no call goes
out as the text it is, up to the moment when its name and the beginning of its arguments have been read; from then on it is a
call, perhaps one that was cut off.
"""

import functools
import re
import secrets
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gangpao.engine.generate import Engine
from gangpao.serve.answers.call_arguments import ObjectReader, TagReader
from gangpao.text.pieces import SPACE, PieceReader, held_back
from gangpao.text.templates.call_format import OWN_CALLS, CallFormat, may_become, pattern_of

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_FENCES = ("", "```", "```json")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.:/-]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BARE_END = re.compile(r"\s*\}")
_FENCED_END = re.compile(r"\s*\}\s*```")
_BEGUN = '{"name":"'
_MAX_HEAD = 512  # characters after which the beginning of a call is no beginning of a call

State = Literal["start", "words", "head", "arguments", "tail"]
Delta = dict[str, Any]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Offered:
    """The functions that an answer may call, and their places in the request. must: it is nothing but calls. single: it is
    one call, however many the request allows, because the function was named."""

    functions: tuple[Json, ...] = ()
    must: bool = False
    single: bool = False
    places: tuple[int, ...] = ()


def offered(tools: Sequence[Json] | None, tool_choice: str | Json | None) -> Offered:
    """What a request's tools and tool_choice allow. Raises ValueError that begins with the field's name."""
    functions = _functions(tools or ())
    places = tuple(range(len(functions)))
    if tool_choice is None or tool_choice == "auto":
        return Offered(functions, places=places)
    if tool_choice == "none":
        return Offered()
    if not functions:
        raise ValueError("tool_choice: there are no tools to choose from")
    if tool_choice == "required":
        return Offered(functions, must=True, places=places)
    return _chosen(tool_choice, functions)


def sound(tools: Sequence[Json], tool_choice: str | Json | None) -> tuple[tuple[Json, ...], tuple[str, ...]]:
    """The tools that can be offered, and a note on each other one. One that is strict, or that tool_choice names, stays, to be
    refused."""
    wanted = set(map(_named, _wanted(tool_choice) or ()))
    kept: list[Json] = []
    notes = []
    known: set[str] = set()
    for i, tool in enumerate(tools):
        where, why = _fault(tool, known)
        function = tool.get("function") if isinstance(tool, Mapping) else None
        strict = isinstance(function, Mapping) and function.get("strict") is True
        name = _named(tool)
        if why and not strict and (name is None or name not in wanted):
            notes.append(f"tools.{i}{where}: the tool is left out: {why}")
            continue
        kept.append(tool)
        if name is not None:
            known.add(name)
    return tuple(kept), tuple(notes)


def _functions(tools: Sequence[Json]) -> tuple[Json, ...]:
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools: at most {MAX_TOOLS}, got {len(tools)}")
    found: dict[str, Json] = {}
    for i, tool in enumerate(tools):
        where, why = _fault(tool, found)
        if why:
            raise ValueError(f"tools[{i}]{where}: {why}")
        found[tool["function"]["name"]] = tool["function"]
    return tuple(found.values())


def _fault(tool: object, known: Container[str]) -> tuple[str, str]:
    """Where and why a tool cannot be offered; ("", "") where it can. known: names of the functions before it."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        return "", 'must look like {"type": "function", "function": {"name": ...}}'
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return ".function.name", f"letters, digits and _ - . : / only, 1 to 128; got {name!r:.60}"
    return (".function.name", f"there are two functions called {name}") if name in known else ("", "")


def _chosen(choice: str | Json, functions: tuple[Json, ...]) -> Offered:
    """tool_choice as an object: one function, or OpenAI's allowed_tools."""
    wrong = ValueError(
        'tool_choice: must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
    )
    wanted = _wanted(choice)
    if not wanted or not isinstance(choice, Mapping):
        raise wrong
    names = [_named(one) for one in wanted]
    known = {f["name"] for f in functions}
    for name in names:
        if name is None:
            raise wrong
        if name not in known:
            raise ValueError(f"tool_choice: no function called {name!r:.80} is among the tools")
    single = choice.get("type") != "allowed_tools"
    must = single or choice.get("allowed_tools", choice).get("mode") == "required"
    places = tuple(i for i, f in enumerate(functions) if f["name"] in names)
    return Offered(tuple(functions[i] for i in places), must, single, places)


def _wanted(choice: object) -> list[Any] | None:
    """What tool_choice lists, as an object; None for another."""
    if not isinstance(choice, Mapping):
        return None
    among = choice.get("allowed_tools", choice) if choice.get("type") == "allowed_tools" else {"tools": [choice]}
    wanted = among.get("tools") if isinstance(among, Mapping) else None
    return wanted if isinstance(wanted, list) else None


def _named(choice: object) -> str | None:
    if not isinstance(choice, Mapping):
        return None
    inner = choice.get("function")
    name = (inner if isinstance(inner, Mapping) else choice).get("name")
    return name if isinstance(name, str) else None


def encode(
    engine: Engine,
    messages: Sequence[Json],
    tools: Sequence[Json] | None,
    tool_choice: str | Json | None,
    **options: Any,
) -> list[int]:
    """Prompt ids of messages whose contents are texts. options: those of Engine.prompt_with. Raises ValueError."""
    shown = tools if offered(tools, tool_choice).functions else None
    return engine.prompt_with(messages, tools=shown, **options)


class ToolParser(PieceReader[Delta]):
    """The deltas of one answer. push takes its text as it comes, finish gives what was held back; called: any call so far.

    calls: how the model writes them, engine.template.calls.
    """

    def __init__(
        self, tools: Sequence[Json], tool_choice: str | Json | None = None, calls: CallFormat = OWN_CALLS
    ) -> None:
        super().__init__()
        self.called = False
        functions = _functions(tools)
        self._names = frozenset(f["name"] for f in functions)
        self._parameters = {f["name"]: f.get("parameters") for f in functions}
        self._form = calls
        self._texts = _texts_of(calls)
        self._state: State = "start" if self._texts.bare else "words"
        self._index = -1
        self._arguments: ObjectReader | TagReader = ObjectReader()
        self._bare: re.Pattern[str] | None = None  # how the last call ends, if it came without marks
        self._next = False  # whether the name of another call comes without the mark

    def finish(self) -> list[Delta]:
        """The end of the answer: what was held back is words, unless it is a call that was cut off or lies behind one."""
        held, self._held = self._held, ""
        if self._state == "head":
            begun, opening = "".join(held.split()), "".join(self._form.inner.split())
            cut = self._next or begun.startswith((opening, _BEGUN)) or opening.startswith(begun)
            held = "" if cut else self._form.mark + held
        elif self._state in ("arguments", "tail"):
            held = ""
        elif self.called:
            held = held.strip(SPACE)
        return [{"content": held}] if held else []

    def _step(self, out: list[Delta]) -> bool:
        step = {
            "start": self._start, "words": self._words, "head": self._head, "arguments": self._read, "tail": self._tail,
        }  # fmt: skip
        return step[self._state](out)

    def _start(self, out: list[Delta]) -> bool:
        """Where an answer begins, or goes on behind a call without marks, such a call may stand."""
        text = self._held.lstrip(SPACE)
        if not text:
            return False
        fence = next((f for f in reversed(_FENCES) if text.startswith(f)), "")
        found = _HEAD.match(text, len(fence))
        if found and found[1] in self._names:
            self._bare = _FENCED_END if fence else _BARE_END
            self._begin(found[1], text[found.end() :], ObjectReader(), out)
            return True
        if len(text) <= _MAX_HEAD and any(self._may_begin(text, f) for f in _FENCES):
            return False
        self._state = "words"
        return True

    def _may_begin(self, text: str, fence: str) -> bool:
        """Whether the text is the beginning of a call without marks, behind that fence."""
        said, begun = "".join(text.split()), fence + _BEGUN
        if not said.startswith(begun):
            return begun.startswith(said)
        name, quote, rest = said[len(begun) :].partition('"')
        if not quote:
            return any(known.startswith(name) for known in self._names)
        return name in self._names and any(f',"{key}":{{'.startswith(rest) for key in ("arguments", "parameters"))

    def _begin(self, name: str, rest: str, reader: ObjectReader | TagReader, out: list[Delta]) -> None:
        self.called = True
        self._index += 1
        self._held, self._state, self._arguments, self._next = rest, "arguments", reader, False
        function = {"name": name, "arguments": ""}
        call = {"index": self._index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        out.append({"tool_calls": [call]})

    def _words(self, out: list[Delta]) -> bool:
        mark = self._form.mark
        words, found, rest = self._held.partition(mark) if mark else (self._held, "", "")
        if found:
            self._say(words.rstrip(SPACE), out)
            self._held, self._state = rest, "head"
            return True
        # White space in front of a call is the format's; the beginning of a mark may become one.
        words = words[: len(words) - held_back(words, mark)].rstrip(SPACE)
        self._held = self._held[len(words) :]
        self._say(words, out)
        return False

    def _say(self, words: str, out: list[Delta]) -> None:
        if words.strip(SPACE) if self.called else words:
            out.append({"content": words})

    def _head(self, out: list[Delta]) -> bool:
        """Behind the mark: a name and the beginning of its arguments."""
        texts = self._texts
        found = (texts.next_name if self._next else texts.name).match(self._held)
        if found is None and not self._next and self._form is OWN_CALLS:
            found = _HEAD.match(self._held)
        if found and found[1] in self._names:
            rest = self._held[found.end() :]
            if self._form.tags is None:
                self._bare = None
                self._begin(found[1], rest, ObjectReader(), out)
                return True
            begun = self._tagged(found[1], rest)
            if begun is not None:
                self._begin(found[1], *begun, out)
                return True
        waits = (
            found is not None
            and self._form.tags is not None
            and (found[1] in self._names or found.end() == len(self._held))
        )
        if waits and len(self._held) <= _MAX_HEAD:
            return False
        body, end, rest = self._held.partition(texts.close) if texts.close else (self._held, "", "")
        if not end and not found and len(self._held) <= _MAX_HEAD:
            return False
        # No call that we offered: it is words.
        self._say(self._form.mark + (body + end if end else ""), out)
        self._held, self._state, self._next = rest if end else self._held, "words", False
        return True

    def _tagged(self, name: str, rest: str) -> tuple[str, TagReader] | None:
        """What follows a name where arguments have tags; None where it takes more text to tell."""
        tags, texts = self._form.tags, self._texts
        assert tags is not None
        reader = TagReader(self._form, self._parameters[name])
        found = texts.name_end.match(rest)
        if found:
            return rest[found.end() :], reader
        if may_become(rest, self._form.name_end):
            return None
        found = texts.none.match(rest)
        return None if found is None else (rest[found.end() :], reader.without_arguments())

    def _read(self, out: list[Delta]) -> bool:
        """Arguments, as far as they are there."""
        piece, self._held = self._arguments.read(self._held)
        if piece:
            out.append({"tool_calls": [{"index": self._index, "function": {"arguments": piece}}]})
        if self._arguments.complete:
            self._state = "tail"
        return self._arguments.complete

    def _tail(self, out: list[Delta]) -> bool:
        """Behind a call: the mark of its end, or what leads to another one."""
        if self._bare:
            found = self._bare.match(self._held)
            self._held = self._held[found.end() :] if found else self._held
            self._state = "start" if found else "tail"
            return found is not None
        texts = self._texts
        if texts.next is not None and (found := texts.next.match(self._held)):
            self._held, self._state, self._next = self._held[found.end() :], "head", True
            return True
        if self._form.next is not None and texts.next is not None and may_become(self._held, self._form.next):
            return False
        if found := texts.end.match(self._held):
            self._held, self._state = self._held[found.end() :], "words"
            return True
        _, end, rest = self._held.partition(texts.close) if texts.close else ("", "", "")
        if end:
            self._held, self._state = rest, "words"
        return bool(end)


class _Texts(NamedTuple):
    """A format's texts as expressions. name: what follows the mark, up to the arguments; next_name: the same in a further call;
    next: between the arguments of a call and the name of the next, where no mark stands there; close: the last tag of a call."""

    bare: bool
    name: re.Pattern[str]
    next_name: re.Pattern[str]
    name_end: re.Pattern[str]
    none: re.Pattern[str]
    next: re.Pattern[str] | None
    end: re.Pattern[str]
    close: str


@functools.lru_cache(maxsize=64)
def _texts_of(form: CallFormat) -> _Texts:
    begin, name_end, end = (pattern_of(f" {text}", loose=True) for text in (form.inner, form.name_end, form.end))
    name = rf"({_NAME.pattern})"
    if form.tags is None:
        name = rf"{name}{name_end}\s*(?=\{{)"
    following = form.next if form.next is not None and not _by_mark(form) else None
    closing = re.findall(r"</?[^<>\s]+>|\[/?[A-Z_]+\]", form.end)
    return _Texts(
        form.tags is None and (not form.mark or '{"name"' in form.inner.replace(" ", "")),
        re.compile(rf"{begin}\s*{name}"),
        re.compile(rf"\s*{name}"),
        re.compile(name_end),
        re.compile(pattern_of(f" {form.tags.none if form.tags else ''}", loose=True)),
        None if following is None else re.compile(pattern_of(f" {following}", loose=True)),
        re.compile(end),
        closing[-1] if closing else "",
    )


def _by_mark(form: CallFormat) -> bool:
    """Whether another call begins with the mark, as the first one does."""
    return form.next is not None and form.next.startswith(form.end) and form.next.endswith(form.begin)
