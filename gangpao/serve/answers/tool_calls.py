"""Functions of a chat request: checked, put into the prompt, and read out of the answer while it streams.

    offered      the request's tools and tool_choice -> the functions that may be called, and whether one must be
    encode       messages and tools -> prompt ids
    ToolParser   the answer's text, piece by piece -> OpenAI's deltas: words, then calls with their arguments in pieces

An answer that may call is text up to <tool_call>, whose JSON a grammar holds to the function's schema (grammar.py). The
parser does not rely on that, and it knows the calls of models that forget the mark: a call's JSON at the start of the answer,
perhaps in a code fence. What turns out to be no call goes out as the text it is, up to the moment when its name and
the beginning of its arguments have been read; from then on it is a call, perhaps one that was cut off.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gangpao.engine.generate import Engine
from gangpao.text.templates.tools import CALL, CALL_END

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_FENCES = ("", "```", "```json")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.:/-]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BARE_END = re.compile(r"\s*\}")
_FENCED_END = re.compile(r"\s*\}\s*```")
_BEGUN = '{"name":"'
_MAX_HEAD = 512  # characters after which the beginning of a call is no beginning of a call
_SPACE = " \t\r\n"

Delta = dict[str, Any]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Offered:
    """The functions that an answer may call. must: it is nothing but calls."""

    functions: tuple[Json, ...] = ()
    must: bool = False


def offered(tools: Sequence[Json] | None, tool_choice: str | Json | None) -> Offered:
    """What a request's tools and tool_choice allow. Raises ValueError that begins with the field's name."""
    functions = _functions(tools or ())
    if tool_choice is None or tool_choice == "auto":
        return Offered(functions)
    if tool_choice == "none":
        return Offered()
    if not functions:
        raise ValueError("tool_choice: there are no tools to choose from")
    if tool_choice == "required":
        return Offered(functions, must=True)
    return _chosen(tool_choice, functions)


def _functions(tools: Sequence[Json]) -> tuple[Json, ...]:
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools: at most {MAX_TOOLS}, got {len(tools)}")
    found: dict[str, Json] = {}
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise ValueError(f'tools[{i}]: must look like {{"type": "function", "function": {{"name": ...}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"tools[{i}].function.name: letters, digits and _ - . : / only, 1 to 128; got {name!r:.60}"
            )
        if name in found:
            raise ValueError(f"tools[{i}].function.name: there are two functions called {name}")
        found[name] = function
    return tuple(found.values())


def _chosen(choice: str | Json, functions: tuple[Json, ...]) -> Offered:
    """tool_choice as an object: one function, or OpenAI's allowed_tools."""
    wrong = ValueError(
        'tool_choice: must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
    )
    if not isinstance(choice, Mapping):
        raise wrong
    among = choice.get("allowed_tools", choice) if choice.get("type") == "allowed_tools" else {"tools": [choice]}
    wanted = among.get("tools") if isinstance(among, Mapping) else None
    if not isinstance(wanted, list) or not wanted:
        raise wrong
    names = [_named(one) for one in wanted]
    known = {f["name"] for f in functions}
    for name in names:
        if name is None:
            raise wrong
        if name not in known:
            raise ValueError(f"tool_choice: no function called {name!r:.80} is among the tools")
    must = choice.get("type") != "allowed_tools" or among.get("mode") == "required"
    return Offered(tuple(f for f in functions if f["name"] in names), must)


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
    """Prompt ids of messages whose contents are texts. options: those of ChatTemplate.encode. Raises ValueError."""
    shown = tools if offered(tools, tool_choice).functions else None
    return engine.template.encode(engine.tokenizer, messages, tools=shown, **options)


class ToolParser:
    """The deltas of one answer. push takes its text as it comes, finish gives what was held back; called: any call so far."""

    def __init__(self, tools: Sequence[Json], tool_choice: str | Json | None = None) -> None:
        self.called = False
        self._names = frozenset(f["name"] for f in _functions(tools))
        self._state: Literal["start", "words", "head", "arguments", "tail"] = "start"
        self._text = ""  # not looked at yet, or held back
        self._index = -1
        self._scan = _ObjectScan()
        self._bare: re.Pattern[str] | None = None  # how the last call ends, if it came without marks

    def push(self, text: str) -> list[Delta]:
        """What can be said for certain after some more text."""
        self._text += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """The end of the answer: what was held back is words, unless it is a call that was cut off or lies behind one."""
        held, self._text = self._text, ""
        if self._state == "head":
            begun = "".join(held.split())
            held = "" if begun.startswith(_BEGUN) or _BEGUN.startswith(begun) else CALL + held
        elif self._state in ("arguments", "tail"):
            held = ""
        elif self.called:
            held = held.strip(_SPACE)
        return [{"content": held}] if held else []

    def _step(self, deltas: list[Delta]) -> bool:
        """Go on by one mark; False when more text is needed."""
        step = {
            "start": self._start, "words": self._words, "head": self._head, "arguments": self._arguments, "tail": self._tail,
        }  # fmt: skip
        return step[self._state](deltas)

    def _start(self, deltas: list[Delta]) -> bool:
        """Where an answer begins, or goes on behind a call without marks, such a call may stand."""
        text = self._text.lstrip(_SPACE)
        if not text:
            return False
        fence = next((f for f in reversed(_FENCES) if text.startswith(f)), "")
        found = _HEAD.match(text, len(fence))
        if found and found[1] in self._names:
            self._text, self._bare = text, _FENCED_END if fence else _BARE_END
            self._begin(found, deltas)
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

    def _begin(self, found: re.Match[str], deltas: list[Delta]) -> None:
        self.called = True
        self._index += 1
        self._text, self._state, self._scan = self._text[found.end() :], "arguments", _ObjectScan()
        function = {"name": found[1], "arguments": ""}
        call = {"index": self._index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        deltas.append({"tool_calls": [call]})

    def _words(self, deltas: list[Delta]) -> bool:
        words, mark, rest = self._text.partition(CALL)
        if mark:
            self._say(words.rstrip(_SPACE), deltas)
            self._text, self._state = rest, "head"
            return True
        # White space in front of a call is the format's; the beginning of a mark may become one.
        keep = next((n for n in range(min(len(words), len(CALL) - 1), 0, -1) if words.endswith(CALL[:n])), 0)
        out = words[: len(words) - keep].rstrip(_SPACE)
        self._text = words[len(out) :]
        self._say(out, deltas)
        return False

    def _say(self, words: str, deltas: list[Delta]) -> None:
        if words.strip(_SPACE) if self.called else words:
            deltas.append({"content": words})

    def _head(self, deltas: list[Delta]) -> bool:
        found = _HEAD.match(self._text)
        if found and found[1] in self._names:
            self._bare = None
            self._begin(found, deltas)
            return True
        body, end, rest = self._text.partition(CALL_END)
        if not end and not found and len(self._text) <= _MAX_HEAD:
            return False
        # No call that we offered: it is words.
        self._say(CALL + (body + end if end else ""), deltas)
        self._text, self._state = rest if end else self._text, "words"
        return True

    def _arguments(self, deltas: list[Delta]) -> bool:
        if not self._text:
            return False
        size, complete = self._scan.feed(self._text)
        if size:
            piece = {"index": self._index, "function": {"arguments": self._text[:size]}}
            deltas.append({"tool_calls": [piece]})
        self._text = self._text[size:]
        self._state = "tail" if complete else "arguments"
        return complete

    def _tail(self, deltas: list[Delta]) -> bool:
        if self._bare:
            found = self._bare.match(self._text)
            self._text = self._text[found.end() :] if found else self._text
            self._state = "start" if found else "tail"
            return found is not None
        _, end, rest = self._text.partition(CALL_END)
        if not end:
            return False
        self._text, self._state = rest, "words"
        return True


class _ObjectScan:
    """Finds the end of a JSON object that comes in pieces: braces count, except in strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, text: str) -> tuple[int, bool]:
        """How many characters of `text` belong to the object, and whether it is complete."""
        for i, c in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1, True
        return len(text), False
