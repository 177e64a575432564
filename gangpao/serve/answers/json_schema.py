"""JSON schemas from strangers: bounded before anything is built from them, and in the form the grammar wants.

A grammar's cost is not its text's: {"multipleOf": 1000003} takes twelve seconds and (a{1000}){1000} a million states. So a
schema is walked once, by a loop, and refused as soon as it is too deep, too large, or holds a number or a pattern that is;
what passes compiles in milliseconds.

    ready       a schema within the bounds, in the form the grammar takes; no more is known of it
    held        the same, tried; what a grammar cannot hold is refused (exact) or left out, by name (loosen.py)
    ignored     names of what the grammar of a schema that is not exact passes over

Formats that llguidance takes too widely (23:13:60Z, labels that end in a hyphen) are patterns of ours: a text that the grammar lets
through is a value that a validator accepts.

What it gives up: references to other documents, and schemas beyond the bounds below, which are several times those of
OpenAI's own structured outputs.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gangpao.serve.answers.loosen import TOO_LONG, Budget, Fault, loosened

if TYPE_CHECKING:
    import llguidance

MAX_DEPTH = 64  # levels of JSON; a level of objects takes two
MAX_VALUES = 10_000
MAX_CHARS = 120_000
MAX_PROPERTIES = 500  # of one object
MAX_PATTERN = 1_000
MAX_STATES = 10_000  # of all patterns together, their counted repeats written out
MAX_MULTIPLE = 10_000  # of multipleOf, without its decimal point
# Bounds of what one schema may cost to compile and one token to mask; above them it is an error, not a long wait.
LIMITS = {
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "step_max_items": 20_000,
    "verbose_errors": False,
}

_DATA = ("const", "enum", "default", "examples")  # what lies under these is a value, not a schema
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # names -> schemas
_NOTES = ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly")
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
# The text's form: one line, spaces as people write JSON. Free white space would let a small model say nothing for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# --- formats; any other is an annotation, as JSON Schema has it

_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][48]|[2468]0|[13579][26])00)"
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # not 0000, which many parsers do not know
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
# Not "xn--": what follows it must be a code that a regular expression cannot check.
_LABEL = (
    "([A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]?[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-][A-Za-z0-9]([A-Za-z0-9-]{0,59}[A-Za-z0-9])"
    "|[A-Za-z0-9][A-Za-z0-9-]-[A-Za-z0-9]([A-Za-z0-9-]{0,58}[A-Za-z0-9])?)"
)
_ATOM = "[A-Za-z0-9_+-]{1,20}"
_PATTERNS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "hostname": {"pattern": rf"^{_LABEL}(\.{_LABEL})*$", "maxLength": 253},
    "email": {"pattern": rf"^{_ATOM}(\.{_ATOM}){{0,2}}@{_LABEL}(\.{_LABEL})*$", "maxLength": 253},
}
_FORMATS = frozenset({"duration", "ipv4", "ipv6", "uuid", "uri"})  # as llguidance has them


def ready(schema: object, where: str, *, exact: bool, whole: bool = True) -> dict[str, Any]:
    """A schema within the bounds, for llguidance. exact: refuse keywords that cannot be held, instead of ignoring them. whole: it
    may describe any value, not only an object.

    Raises ValueError, beginning with `where`.
    """
    why = _unfit(schema, whole)
    if why or not isinstance(schema, dict):
        raise ValueError(f"{where}: {why}")
    return _form(schema, exact, whole)


def held(
    schema: object, where: str, budget: Budget, *, exact: bool, whole: bool = False
) -> tuple[dict[str, Any], list[Fault]]:
    """A schema of which it is known that a grammar can hold it, for llguidance, and what was left out of it.

    whole: it may describe any value, not only an object.

    Raises ValueError, beginning with `where` and naming the part, where something would be left out and exact is set.
    """
    fits = functools.partial(_why_not, exact=exact, whole=whole)
    kept, faults = loosened(schema, fits, budget, {} if whole else {"type": "object"}, first=exact)
    if faults and exact:
        raise ValueError(f"{where}: {faults[0].path or 'the schema'} cannot be guaranteed: {faults[0].why}")
    return _form(kept, exact, whole), faults


def ignored(ready: dict[str, Any], budget: Budget, *, whole: bool) -> list[Fault]:
    """What a grammar does not hold of a ready schema that is not exact and compiles: keywords that the compiler only warns of.

    whole: it may describe any value, not only an object. Where the budget ends first, the compiler's words stand for the whole.
    """
    import llguidance

    warnings = llguidance.LLMatcher.validate_grammar_with_warnings(_lark(ready))[1]
    if not warnings:
        return []
    fits = functools.partial(_why_not, exact=True, whole=whole)
    _, faults = loosened(ready, fits, budget, {} if whole else {"type": "object"})
    known = [fault for fault in faults if fault.why != TOO_LONG]
    return known if known and known == faults else [*known, *(Fault("", " ".join(text.split())) for text in warnings)]


def size_of(schema: object) -> int:
    """Values in a schema, which compiling costs by; no more than one above MAX_VALUES are counted."""
    count, left = 0, [schema]
    while left and count <= MAX_VALUES:
        value = left.pop()
        count += 1
        if isinstance(value, dict | list):
            left += itertools.islice(value.values() if isinstance(value, dict) else value, MAX_VALUES + 1)
    return count


def with_free_spacing(ready: Mapping[str, Any]) -> dict[str, Any]:
    """A ready schema for JSON that a model writes in its own way: with up to 40 spaces and line ends between its parts."""
    free = {
        "whitespace_pattern": r"[ \n]{0,40}",
        "item_separator": ",",
        "key_separator": ":",
        "whitespace_flexible": True,
    }
    return {**ready, "x-guidance": {**ready["x-guidance"], **free}}


def _unfit(schema: object, whole: bool) -> str:
    """What is wrong with a schema before anything is built from it; "" if nothing."""
    if not isinstance(schema, dict):
        return f"must be a JSON schema (an object), not {type(schema).__name__}"
    kind = schema.get("type", "object")
    if not whole and kind != "object" and not (isinstance(kind, list) and "object" in kind):
        return f'the type must be "object", not {kind!r:.60}'
    return _over_bounds(schema)


def _form(schema: dict[str, Any], exact: bool, whole: bool) -> dict[str, Any]:
    form: dict[str, Any] = _without_notes(schema)
    if not whole:
        form["type"] = "object"
    form["x-guidance"] = {**_SPACING, "lenient": not exact, "coerce_one_of": not exact}
    return form


# --- what a grammar can hold


class _Bytes:
    """A vocabulary of single bytes: whether a grammar compiles does not depend on a model's."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([i]) for i in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@functools.cache
def _bytes() -> tuple[llguidance.LLTokenizer, llguidance.LLParserLimits]:
    import llguidance

    index = llguidance.LLTokenizer(_Bytes(), n_vocab=257, eos_token=[256])  # type: ignore[arg-type]
    return index, llguidance.LLParserLimits(**LIMITS)  # type: ignore[arg-type]


def _why_not(schema: object, *, exact: bool, whole: bool) -> str:
    """Why a grammar cannot hold a schema; "" where it can. whole: it need not be an object's."""
    why = _unfit(schema, whole)
    if why or not isinstance(schema, dict):
        return why
    import llguidance

    index, limits = _bytes()
    lark = _lark(_form(schema, exact, whole))
    return compile_error(llguidance.LLMatcher(index, lark, log_level=0, limits=limits))


def _lark(ready: dict[str, Any]) -> str:
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(f"start: %json {json.dumps(ready)}")


def compile_error(matcher: llguidance.LLMatcher) -> str:
    """Why a grammar does not compile, in the compiler's words without a place in the grammar; "" where it does."""
    if not matcher.is_error():
        matcher.compute_bitmask()  # a first step finds what compiling does not
    if not matcher.is_error():
        return ""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()] or ["unknown"]
    reason = next((line for line in lines if line.startswith("error: ")), lines[0])
    for prefix in (r"error: ", r"at \d+\(\d+\): ", r"failed to (compile JSON schema|parse \"%json\"): "):
        reason = re.sub(f"^{prefix}", "", reason)
    return re.sub(r" at line \d+ column \d+", "", reason)


def _over_bounds(schema: dict[str, Any]) -> str:
    """What is too much in a schema, or refers elsewhere; "" for one within the bounds."""
    return next(filter(None, _measured(schema)), "")


def _measured(schema: dict[str, Any]) -> Iterator[str]:
    def limit(what: str, found: int, most: int) -> str:
        return f"the schema has more than {most} {what}; make it smaller" if found > most else ""

    stack: list[tuple[Any, int]] = [(schema, 1)]
    values = chars = states = 0
    while stack:
        value, depth = stack.pop()
        values += 1
        yield limit("levels", depth, MAX_DEPTH)
        if isinstance(value, dict | list):
            yield limit("values", values + len(stack) + len(value), MAX_VALUES)
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, list):
            stack += [(v, depth + 1) for v in value]
        elif isinstance(value, dict):
            chars += sum(map(len, value))
            stack += [(v, depth + 1) for k, v in value.items() if not (k in _NOTES and isinstance(v, str))]
            yield _too_much(value)
            states += sum(map(_written_out, _patterns(value)))
        yield limit("characters", chars, MAX_CHARS)
        yield limit("characters in patterns with their repeats written out", states, MAX_STATES)


def _too_much(value: dict[str, Any]) -> str:
    """What is too much in the keywords of one schema."""
    reference, multiple, properties = value.get("$ref"), value.get("multipleOf"), value.get("properties")
    if isinstance(reference, str) and not reference.startswith("#"):
        return f"$ref {reference!r:.80} leads elsewhere; put it under $defs and write #/$defs/NAME"
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        return f"an object of the schema has more than {MAX_PROPERTIES} properties"
    if isinstance(multiple, int | float) and not isinstance(multiple, bool):
        digits = "".join(map(str, Decimal(str(multiple)).as_tuple().digits)).rstrip("0")
        if not 0 < multiple <= MAX_MULTIPLE or int(digits) > MAX_MULTIPLE:
            return f"multipleOf must be above 0, at most {MAX_MULTIPLE}, and of few digits"
    if any(len(p) > MAX_PATTERN for p in _patterns(value)):
        return f"a pattern of the schema has more than {MAX_PATTERN} characters"
    return ""


def _patterns(value: dict[str, Any]) -> list[str]:
    named = value.get("patternProperties")
    return [p for p in (value.get("pattern"), *(named if isinstance(named, dict) else ())) if isinstance(p, str)]


# An escape (with what it escapes), a class, a count, or one character.
_TOKEN = re.compile(r"\\(?:[pPuxk]\{[^}]*\}|u[0-9a-fA-F]{4}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(,?)(\d*)\}|.", re.S)


def _written_out(pattern: str) -> int:
    """Characters of a pattern whose counted repeats are written out."""
    groups = [[0, 0]]  # of each open group: characters before its last item, and that item's
    for token in _TOKEN.finditer(pattern):
        text = token.group()
        if text == "(":
            groups.append([0, 0])
        elif text == ")" and len(groups) > 1:
            inner = sum(groups.pop())
            groups[-1] = [sum(groups[-1]), inner]
        elif token.group(1) is not None and (token.group(1) or token.group(3)):
            times = max(int(n[:9]) for n in (token.group(1), token.group(3)) if n)
            groups[-1][1] *= max(1, times)
        else:
            groups[-1] = [sum(groups[-1]), 1]
    return sum(map(sum, groups))


def _without_notes(schema: Any, *, names: bool = False) -> Any:
    """A copy without what says nothing here, and with patterns for formats; its depth is bounded. names: the keys are names."""
    if isinstance(schema, list):
        return [_without_notes(v) for v in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: _without_notes(v) for name, v in schema.items()}
    kept = {
        key: value if key in _DATA else _without_notes(value, names=key in _NAMES)
        for key, value in schema.items()
        if key not in _NOTES
    }
    for key in _COUNTS & kept.keys():
        if isinstance(kept[key], float) and kept[key].is_integer():
            kept[key] = int(kept[key])
    name = kept.get("format")
    if isinstance(name, str) and name not in _FORMATS:
        del kept["format"]
        if pattern := _PATTERNS.get(name):
            others = kept.get("allOf", [])
            kept["allOf"] = [*others, pattern] if isinstance(others, list) else others
    return kept
