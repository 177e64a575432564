"""A grammar of calls in a model's own format (text/templates/call_format.py): rules in llguidance's Lark dialect.

    call_rules    what follows the mark of the first call: "calls"
    free_rules    words, or words up to that mark and calls

Where arguments are a JSON object, it is held to the function's schema. Where each stands between tags, names, order, required ones
and values are held; of a text, which has no quotes there, its choices, its length and patterns of the usual form (`unheld` names
the rest).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gangpao.serve.answers import json_schema
from gangpao.serve.answers.call_arguments import is_text, kinds_of
from gangpao.text.templates.call_format import ID, INDEX, CallFormat, Tags, pattern_of

MAX_CALLS = 8  # of one answer with parallel calls: a small model may not know when to stop
BARE_KEYS = "(arguments|parameters)"  # behind the name, in calls that come without a mark
_DEFINITIONS = ("$defs", "definitions")

Json = Mapping[str, Any]


def call_rules(form: CallFormat, names: Sequence[str], schemas: Sequence[Json], parallel: bool) -> str:
    """Rules for one or more calls behind the mark. schemas: of the functions' parameters, ready for llguidance."""
    heads = [f"call{i}" for i in range(len(names))]
    letters = form.tags is not None
    more = (
        f"({literal(form.next, letters=letters)} call){{0,{MAX_CALLS - 1}}}"
        if parallel and form.next is not None
        else ""
    )
    rules = [
        f"calls: {literal(form.inner)} call {more} {literal(form.end, letters=letters)}",
        f"call: {' | '.join(heads)}",
    ]
    for head, name, schema in zip(heads, names, schemas, strict=True):
        if form.tags is None:
            rules.append(f"{head}: {literal(name + form.name_end)} %json {json.dumps(schema)}")
        else:
            rules += _Tagged(form, form.tags, head, schema).rules(name)
    return "\n".join(rules) + "\n"


def free_rules(form: CallFormat, names: Sequence[str], schemas: Sequence[Json], parallel: bool) -> str:
    """Rules for an answer of words or calls: "start", "WORDS" and what else it takes.

    Calls also come without their mark, as some models write them: bare JSON, perhaps in a code fence, at the start of the answer.
    What begins like one is one, so it is no words.
    """
    mark = _pattern(form.mark)
    if form.tags is not None or '"name"' not in form.begin:
        return (
            "start: WORDS | up_to_call calls\n"
            f"WORDS: /(.|\\n)*/ & ~/(.|\\n)*{mark}(.|\\n)*/\n"
            f"up_to_call[lazy]: /(.|\\n)*{mark}/\n"
        )
    opening = r"\s*(```(json)?\s*)?\{\s*\"name\"\s*:\s*\"%s\"\s*,\s*\"KEYS\"".replace(r"\"", '"').replace(
        "KEYS", BARE_KEYS
    )
    patterns = [_pattern(name) for name in names]
    any_name = f"({'|'.join(patterns)})"
    no_bare = f"& ~/{opening % any_name}(.|\\n)*/"
    heads = [f"bare{i}" for i in range(len(names))]
    several = parallel and form.several
    rules = [
        f"bare: ({' | '.join(heads)}){{1,{MAX_CALLS if several else 1}}}",
        r"BARE_END: /\s{0,8}\}(\s{0,8}```)?\s?/",
    ]
    if form.mark:
        rules += [
            "start: WORDS | up_to_call calls | bare",
            f"WORDS: /(.|\\n)*/ & ~/(.|\\n)*{mark}(.|\\n)*/ {no_bare}",
            f"up_to_call[lazy]: /(.|\\n)*{mark}/ {no_bare}",
        ]
    else:
        rules += ["start: WORDS | bare", f"WORDS: /(.|\\n)*/ {no_bare}"]
    for head, pattern, schema in zip(heads, patterns, schemas, strict=True):
        spaced = json.dumps(json_schema.with_free_spacing(schema))
        rules.append(f"{head}: /{opening % pattern}\\s*:\\s*/ %json {spaced} BARE_END")
    return "\n".join(rules) + "\n"


def literal(text: str, *, letters: bool = False) -> str:
    """A format's text as a sequence of strings, with expressions for identifiers and numbers. letters: a string for each letter,
    for texts of which one begins as another does: a lexer would take the longer one and not come back."""
    parts = []
    for part in re.split(f"([{ID}{INDEX}])", text):
        if part in (ID, INDEX):
            parts.append(f"/{pattern_of(part)}/")
        else:
            parts += [json.dumps(piece, ensure_ascii=False) for piece in (part if letters else [part]) if piece]
    return " ".join(parts) or '""'


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


class _Tagged:
    """The rules of one function's call whose arguments stand between tags."""

    def __init__(self, form: CallFormat, tags: Tags, head: str, schema: Json) -> None:
        self._form, self._tags, self._head = form, tags, head
        self._close = form.argument_end
        self._schema = schema
        properties = schema.get("properties")
        self._properties: Json = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        self._required = frozenset(required if isinstance(required, list) else ()) & self._properties.keys()

    def rules(self, name: str) -> Iterator[str]:
        """The call behind the mark, from its name to the end of its arguments."""
        head, tags = self._head, self._tags
        between, end = (literal(text[len(self._close) :], letters=True) for text in (tags.between, tags.end))
        count = len(self._properties)
        yield f"{head}: {literal(name, letters=True)} {head}_none0"
        for i, (key, schema) in enumerate(self._properties.items()):
            one, skip = f"{head}_value{i} {head}_some{i + 1}", key not in self._required
            yield f"{head}_none{i}: {literal(self._form.name_end, letters=True)} {one}" + (
                f" | {head}_none{i + 1}" if skip else ""
            )
            yield f"{head}_some{i}: {between} {one}" + (f" | {head}_some{i + 1}" if skip else "")
            yield from self._value(f"{head}_value{i}", literal(key + tags.value_begin), schema)
        if not count and self._schema.get("additionalProperties") is not False:
            key = f"/[A-Za-z0-9_.-]{{1,64}}/ {literal(tags.value_begin)}"
            yield from self._value(f"{head}_value", key, {})
            some = f"{literal(self._form.name_end, letters=True)} {head}_value ({between} {head}_value)* {end}"
            yield f"{head}_none0: {some} | {literal(tags.none, letters=True)}"
        else:
            yield f"{head}_none{count}: {literal(tags.none, letters=True)}"
            yield f"{head}_some{count}: {end}"

    def _value(self, rule: str, key: str, schema: object) -> Iterator[str]:
        """A parameter with its value and the tag behind it."""
        kinds = kinds_of(schema, self._schema)
        close = literal(self._close)
        keywords = schema if isinstance(schema, Mapping) else {}
        if not self._tags.raw or "string" not in kinds:
            more = {name: self._schema[name] for name in (*_DEFINITIONS, "x-guidance") if name in self._schema}
            yield f"{rule}: {key} %json {json.dumps({**more, **keywords})} {close}"
            return
        choices = _choices(keywords) if is_text(kinds) else None
        if choices is not None:
            texts = [choice for choice in choices if self._close.strip() not in choice]
            yield f"{rule}: {key} ({' | '.join(map(literal, texts or ['']))}) {close}"
            return
        held = _expressions(keywords) if is_text(kinds) else []
        end = _pattern(self._close)
        if self._tags.wrap is None:
            yield f"{rule}: {key} {rule}_text"
            yield f"{rule}_text[lazy]: {_text(_ANY, end, held)}"
        else:
            before, behind = self._tags.wrap
            yield f"{rule}: {key} ({rule}_plain | {literal(before)} {rule}_text {close})"
            yield f"{rule}_plain[lazy]: {_text(f'[^{_pattern(before[0])}]', end, held)}"
            yield f"{rule}_text[lazy]: {_text(_ANY, _pattern(behind), held)}"


_ANY = r"(.|\n)"
_SIZES = ("minLength", "maxLength")
_HELD = frozenset({"type", "enum", "const", "pattern", "allOf", "x-guidance", *_SIZES})
_ANCHORED = re.compile(r"(?:\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\\[^$])*", re.S)


def unheld(form: CallFormat, schema: Json) -> list[str]:
    """Paths of what a format does not hold of a function's ready parameters: keywords of texts that stand between tags."""
    properties = schema.get("properties")
    if form.tags is None or not form.tags.raw or not isinstance(properties, Mapping):
        return []
    return [
        f"properties.{name}.{keyword}"
        for name, one in properties.items()
        if isinstance(one, Mapping) and "string" in (kinds := kinds_of(one, schema))
        for keyword in _unheld(one, kinds)
    ]


def _unheld(schema: Json, kinds: frozenset[str]) -> list[str]:
    if not is_text(kinds):
        return [keyword for keyword in schema if keyword not in ("type", "anyOf", "oneOf", "x-guidance")]
    found = [keyword for keyword in schema if keyword not in _HELD]
    if ("enum" in schema or "const" in schema) and _choices(schema) is None:
        found.append("enum")
    parts = schema.get("allOf", [])
    patterns = [("pattern", schema.get("pattern"))]
    for part in parts if isinstance(parts, list) else []:
        patterns.append(("allOf", part.get("pattern") if isinstance(part, Mapping) else ""))
        found += ["allOf"] if not isinstance(part, Mapping) or part.keys() - {"pattern", *_SIZES} else []
    return found + [name for name, pattern in patterns if isinstance(pattern, str) and _whole(pattern) is None]


def _choices(schema: Json) -> list[str] | None:
    choices = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    return choices if texts and choices else None


def _expressions(schema: Json) -> list[str]:
    """Expressions of which a text must match all."""
    parts = schema.get("allOf")
    schemas = [schema, *(part for part in (parts if isinstance(parts, list) else ()) if isinstance(part, Mapping))]
    held = []
    for one in schemas:
        pattern = one.get("pattern")
        if isinstance(pattern, str) and (whole := _whole(pattern)) is not None:
            held.append(whole)
        low, high = (one.get(name) for name in _SIZES)
        if isinstance(low, int) or isinstance(high, int):
            held.append(f"{_ANY}{{{low or 0},{'' if high is None else high}}}")
    return held


def _whole(pattern: str) -> str | None:
    """An expression for all of a text in which `pattern` is found; None for one with anchors or alternatives on the outside."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    inner = pattern[int(begins) : len(pattern) - int(ends)]
    outside, before = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", inner), ""
    while outside != before:
        outside, before = re.sub(r"\([^()]*\)", "", outside), outside
    if not _ANCHORED.fullmatch(inner) or "|" in outside or "(" in outside or ")" in outside:
        return None
    inner = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", inner).replace("\n", r"\n")
    return f"{'' if begins else _ANY + '*'}({inner}){'' if ends else _ANY + '*'}"


def _text(letter: str, end: str, held: Sequence[str]) -> str:
    """The expression of a text and of what ends it, which is not in the text. held: expressions that the text matches."""
    parts = [f"/{letter}*{end}/", *(f"/({expression}){end}/" for expression in held)]
    return " & ".join([*parts, f"~/{_ANY}*{end}{_ANY}+/"] if held else parts)
