"""How a model writes calls of functions, read off its chat template.

Templates say it in fifty ways, and no mark in their text tells for certain which. So a template is rendered (in the worker) on
answers that call, with names and values that occur nowhere else, and what stands around them is the format: before the first
name, between a name and its arguments, between two calls, behind the last one. Arguments are a JSON object, or each one stands
between tags of its own. A template counts only if it also describes the functions and writes results; others get
the words of tools.py.

What it gives up: calls whose name comes behind the arguments, and values in Python's spelling ('a', True).
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.tools import ARGUMENTS, CALL, CALL_END, NAME
from gangpao.text.thoughts import KNOWN

_MARK = re.compile(r"</?[^<>\s]+>|\[/?[A-Z_]+\]")
ID = "\ue000"  # in a format's texts: an identifier of the call, nine letters and digits
INDEX = "\ue001"  # ... the number of the call
_KINDS = {ID: "[A-Za-z0-9]{9}", INDEX: "[0-9]{1,3}"}


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments one by one: key + value_begin + value, `between` two of them, `end` behind the last.

    none: what stands in the place of name_end ... end where there are no arguments. raw: texts stand as they are, other values
    as JSON; else all are JSON. wrap: what may stand around a text that holds the format's own characters.
    """

    value_begin: str
    between: str
    end: str
    none: str
    raw: bool
    wrap: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The text around calls: begin + name + name_end + arguments + (next + name + name_end + arguments)... + end.

    mark: what `begin` opens with; where it comes in the middle of words, a call comes. "": calls stand at the start of an answer
    only. next: None where an answer is one call. The other fields say how a template wants a conversation: content of an answer
    that only calls, arguments as text, identifiers of nine letters and digits.
    """

    mark: str
    begin: str
    name_end: str
    next: str | None
    end: str
    tags: Tags | None = None
    no_content: str | None = ""
    text_arguments: bool = False
    short_ids: bool = False

    @property
    def inner(self) -> str:
        """What stands between the mark and the first name."""
        return self.begin[len(self.mark) :]

    @property
    def several(self) -> bool:
        """Whether an answer may call more than once."""
        return self.next is not None

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks in the format's texts that nobody may type."""
        texts = (self.begin, self.name_end, self.next or "", self.end)
        return tuple(dict.fromkeys(mark for text in texts for mark in _MARK.findall(text)))

    @property
    def argument_end(self) -> str:
        """What stands behind every argument that has tags."""
        assert self.tags is not None
        return common_start(self.tags.between, self.tags.end)


# Ours, which is also Hermes' and Qwen2.5's: for templates that have none.
OWN_CALLS = CallFormat(CALL, f"{CALL}\n{NAME}", ARGUMENTS, f"}}\n{CALL_END}\n{CALL}\n{NAME}", f"}}\n{CALL_END}")


def pattern_of(text: str, *, loose: bool = False) -> str:
    """A regular expression for a format's text. loose: with any white space between its parts."""
    parts = re.split(r"(\s+|[\ue000\ue001])", text)
    out = []
    for part in parts:
        if part in _KINDS:
            out.append(_KINDS[part])
        elif part.isspace():
            out.append(r"\s*" if loose else re.escape(part))
        elif loose:
            out.append(r"\s*".join(map(re.escape, re.findall(r"[{}\[\]:,]|[^{}\[\]:,]+", part))))
        else:
            out.append(re.escape(part))
    return re.sub(r"(?:\\s\*)+", r"\\s*", "".join(out))


def common_start(one: str, other: str) -> str:
    """What both texts begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(a for a, _ in same)


def may_become(text: str, form: str) -> bool:
    """Whether a text may be the beginning of a format's text, white space aside."""
    said, wanted = "".join(text.split()), "".join(re.split(r"[\ue000\ue001]", form)[0].split())
    return wanted.startswith(said) or ((ID in form or INDEX in form) and said.startswith(wanted))


# --- reading a template

_NAMES = ("qzalpha", "qzbeta")
_KEYS = ("qzkey", "qzother")
_VALUES = ("qzvalue", "qzsecond")
_IDS = ("qzident01", "qzident02")
_RESULT = "qzresult"
_NUMBER = 70361
_MAX_TEXT = 300  # characters of one of a format's texts; published ones have fewer than 100
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} is a function",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": f"{key} is a parameter"} for key in _KEYS},
                "required": [],
            },
        },
    }
    for name in _NAMES
]
_QUESTION: dict[str, Any] = {"role": "user", "content": "qzquestion"}
_WORDS: dict[str, Any] = {"role": "assistant", "content": "qzwords"}
_THOUGHTS = re.compile("|".join(rf"(?:{re.escape(m.begin)}\s*)?{re.escape(m.end)}|{re.escape(m.begin)}" for m in KNOWN))


@functools.lru_cache(maxsize=32)
def call_format_of(source: str, special: tuple[tuple[str, str], ...], ends: tuple[str, ...] = ()) -> CallFormat | None:
    """The format of the template `source`, or None where it has none that can be read. ends: texts of tokens that end answers."""
    template = _Template(source, special)
    shown = template.text([_QUESTION], add_generation_prompt=True)
    if shown is None or not all(name in shown for name in _NAMES):
        return None
    for text_arguments in (False, True):
        readers = [_Reader(template, ends, no_content, text_arguments) for no_content in ("", None)]
        found = next(filter(None, (reader.read() for reader in readers)), None)
        if found is not None or not any(reader.refused for reader in readers):
            return found
    return None


class _Template:
    def __init__(self, source: str, special: tuple[tuple[str, str], ...]) -> None:
        self._source = source
        self._special = dict(special)

    def text(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str | None:
        """A conversation with the two functions; None where the template refuses it."""
        context = {
            "messages": messages, "add_generation_prompt": add_generation_prompt, "tools": _TOOLS, "documents": None,
            "bos_token": "", "eos_token": "", **self._special,
        }  # fmt: skip
        try:
            return sandbox_parent.shared().render(self._source, context)
        except sandbox_parent.TemplateError:
            return None


class _Reader:
    """Reads a format off a template, for one way of handing it an answer that calls."""

    def __init__(
        self, template: _Template, ends: tuple[str, ...], no_content: str | None, text_arguments: bool
    ) -> None:
        self._template = template
        self._ends = ends
        self._no_content = no_content
        self._text_arguments = text_arguments
        self.refused = False  # whether the template fails on such an answer

    def read(self) -> CallFormat | None:
        """The format, or None."""
        one = self._answer([{_KEYS[0]: _VALUES[0]}])
        self.refused = one is None
        if one is None or not self._writes_results():
            return None
        found = self._objects(one) or self._tagged(one)
        return found if found is not None and _is_clear(found) else None

    def _answer(self, arguments: Sequence[Mapping[str, Any]], ids: Sequence[str] = _IDS) -> str | None:
        """What the template makes of an answer that calls with these arguments, without the turn's own marks."""
        turn = {"role": "assistant", "content": self._no_content, "tool_calls": self._calls(arguments, ids)}
        whole = self._template.text([_QUESTION, turn])
        before = self._template.text([_QUESTION], add_generation_prompt=True)
        if whole is None or before is None:
            return None
        text = _behind(whole, before)
        if text is None:
            return None
        return self._without_end(text)

    def _calls(self, arguments: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"id": ident, "type": "function",
             "function": {"name": name, "arguments": json.dumps(values) if self._text_arguments else values}}
            for ident, name, values in zip(ids, _NAMES, arguments, strict=False)
        ]  # fmt: skip

    def _without_end(self, text: str) -> str:
        plain = self._template.text([_QUESTION, _WORDS])
        _, words, after = (plain or "").rpartition(_WORDS["content"])
        ends = [*self._ends, *([after.strip()] if words and after.strip() else [])]
        at = min((i for end in ends if end and (i := text.find(end)) >= 0), default=len(text))
        return text[:at].rstrip()

    def _writes_results(self) -> bool:
        calls = self._calls([{_KEYS[0]: _VALUES[0]}], _IDS)
        talk = [
            _QUESTION,
            {"role": "assistant", "content": self._no_content, "tool_calls": calls},
            {"role": "tool", "name": _NAMES[0], "content": _RESULT, "tool_call_id": _IDS[0]},
        ]
        return _RESULT in (self._template.text(talk, add_generation_prompt=True) or "")

    # --- arguments as a JSON object

    def _objects(self, one: str) -> CallFormat | None:
        first = _around(one, _NAMES[0], {_KEYS[0]: _VALUES[0]})
        if first is None:
            return None
        begin, name_end, end = first
        following = None
        two = self._answer([{_KEYS[0]: _VALUES[0]}, {_KEYS[1]: _VALUES[1]}])
        second = _around(two or "", _NAMES[1], {_KEYS[1]: _VALUES[1]})
        again = _around(two or "", _NAMES[0], {_KEYS[0]: _VALUES[0]})
        if second and again:
            following = again[2].partition(_NAMES[1])[0]
            name_end, second_end = _numbered(name_end, second[1])
            if _hide_ids(second_end) != _hide_ids(name_end):
                following = None
        return self._format(begin, name_end, following, end)

    def _format(
        self, begin: str, name_end: str, following: str | None, end: str, tags: Tags | None = None
    ) -> CallFormat:
        if following is not None:
            begin, following = _numbered(begin, following)
        texts = [_hide_ids(text) for text in (begin, name_end, following or "", end)]
        return CallFormat(
            _mark(texts[0]), texts[0], texts[1], texts[2] if following is not None else None, texts[3], tags,
            self._no_content, self._text_arguments, self._answer([{}], ("call_1",)) is None,
        )  # fmt: skip

    # --- arguments between tags

    def _tagged(self, one: str) -> CallFormat | None:
        pair = dict(zip(_KEYS, _VALUES, strict=True))
        single, double, none = (self._answer([values]) for values in ({_KEYS[0]: _VALUES[0]}, pair, {}))
        number = self._answer([{_KEYS[0]: _NUMBER}])
        cut = _cut(single or "", (_NAMES[0], _KEYS[0], _VALUES[0]))
        cut_two = _cut(double or "", (_NAMES[0], _KEYS[0], _VALUES[0], _KEYS[1], _VALUES[1]))
        cut_none = _cut(none or "", (_NAMES[0],))
        cut_number = _cut(number or "", (_NAMES[0], _KEYS[0], str(_NUMBER)))
        if not (cut and cut_two and cut_none and cut_number):
            return None
        begin, name_end, value_begin, rest = cut
        rest_none = cut_none[1]
        raw = cut_number[2] == value_begin
        quote = "" if raw else value_begin[-1:]
        if not raw and not (quote == '"' and value_begin == cut_number[2] + '"' and rest.startswith('"')):
            return None
        value_begin, rest = value_begin[: len(value_begin) - len(quote)], rest[len(quote) :]
        between = cut_two[3].removeprefix(quote)
        end = _whole_marks(_common_end(rest, rest_none))
        tags = Tags(
            value_begin, between, rest[: len(rest) - len(end)], rest_none[: len(rest_none) - len(end)], raw,
            self._wrap(value_begin, rest) if raw else None,
        )  # fmt: skip
        two = _cut(self._answer([{_KEYS[0]: _VALUES[0]}, {_KEYS[1]: _VALUES[1]}]) or "",
                   (_NAMES[0], _KEYS[0], _VALUES[0], _NAMES[1], _KEYS[1], _VALUES[1]))  # fmt: skip
        following = two[3].removeprefix(quote) if two else None
        if following is not None and not following.startswith(tags.end):
            return None
        return self._format(begin, name_end, following and following[len(tags.end) :], end, tags)

    def _wrap(self, value_begin: str, rest: str) -> tuple[str, str] | None:
        """What the template puts around a text that looks like markup."""
        inside = "qz<qz&\nqz"
        cut = _cut(self._answer([{_KEYS[0]: inside}]) or "", (_NAMES[0], _KEYS[0], inside))
        if not cut or not cut[2].startswith(value_begin):
            return None
        before, behind = cut[2][len(value_begin) :], cut[3].partition(rest)[0]
        return (before, behind) if before and behind else None


def _behind(whole: str, before: str) -> str | None:
    """What a turn adds to the text that asks for it; a thought that either brings is left out."""
    last = None
    for found in _THOUGHTS.finditer(before):
        last = found
    base = before[: last.start()] if last and not before[last.end() :].strip() else before
    if not whole.startswith(base.rstrip()):
        return None
    text = whole[len(base.rstrip()) :]
    while (thought := _THOUGHTS.match(text.lstrip())) is not None:
        text = text.lstrip()[thought.end() :]
    return text.lstrip()


def _around(text: str, name: str, arguments: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The text before a name, between it and its arguments as JSON, and behind them."""
    begin, found, rest = text.partition(name)
    if not found:
        return None
    for spelled in _spellings(arguments):
        middle, there, end = rest.partition(spelled)
        if there:
            return begin, middle, end
    return None


def _spellings(arguments: Mapping[str, Any]) -> Iterator[str]:
    for separators in ((", ", ": "), (",", ":")):
        yield json.dumps(arguments, separators=separators)
    for indent in (2, 4):
        yield json.dumps(arguments, indent=indent)


def _cut(text: str, words: Sequence[str]) -> list[str] | None:
    """The text around words that come in this order; None where one does not."""
    parts = []
    for word in words:
        part, found, text = text.partition(word)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]


def _numbered(first: str, second: str) -> tuple[str, str]:
    """INDEX for a call's number, 0 in the text around the first call and 1 around the second, where the texts are else equal."""
    one, other = re.sub(r"\b0\b", INDEX, first), re.sub(r"\b1\b", INDEX, second)
    return (one, other) if INDEX in _common_end(one, other) else (first, second)


def _hide_ids(text: str) -> str:
    return functools.reduce(lambda out, ident: out.replace(ident, ID), _IDS, text)


def _whole_marks(text: str) -> str:
    """The text without the rest of a mark that begins before it."""
    at = min((i for c in "<[\n" if (i := text.find(c)) >= 0), default=len(text))
    return text if text[:1].isspace() else text[at:]


def _is_clear(found: CallFormat) -> bool:
    """Whether a format can be told from words, and says nothing of the functions that it was read with."""
    tags = found.tags or Tags("", "", "", "", raw=True)
    texts = (
        found.begin,
        found.name_end,
        found.next or "",
        found.end,
        tags.value_begin,
        tags.between,
        tags.end,
        tags.none,
    )
    if any(len(text) > _MAX_TEXT or word in text for text in texts for word in (*_NAMES, *_KEYS, *_VALUES)):
        return False
    if found.tags is not None and not found.argument_end.strip():
        return False
    bare = not found.mark and found.tags is None and _JSON_HEAD.fullmatch(found.begin) is not None
    return bare or found.mark[:1] in ("<", "[")


def _common_end(one: str, other: str) -> str:
    return common_start(one[::-1], other[::-1])[::-1]


_JSON_HEAD = re.compile(r'\s*(\[\s*)?\{\s*"[^<\[|]*$')


def _mark(begin: str) -> str:
    """What tells a call from words: the first mark, or all of `begin` but the opening of its JSON."""
    whole = re.split(r"[\ue000\ue001]", _JSON_HEAD.sub("", begin))[0].strip()
    first = _MARK.match(whole)
    return first.group() if first else whole
