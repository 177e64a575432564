"""A call in a model's own format: what its template writes, the grammar lets through and the parser reads, and back."""

import json
import random

import llguidance
import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.serve.answers.call_arguments import kinds_of, value_of
from gangpao.serve.answers.grammar import AnswerForm, constraint_for
from gangpao.serve.answers.tool_calls import ToolParser
from gangpao.text.templates import sandbox_parent
from gangpao.text.templates.call_format import call_format_of
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.tools import for_template
from tests.engine.tiny import write_tiny
from tests.serve.answers.test_grammar import tool
from tests.serve.answers.test_loosen import LETTERS
from tests.text.templates.tool_templates import SINGLE, TAGGED, TEMPLATES

jsonschema_rs = pytest.importorskip("jsonschema_rs")
SPECIAL = (("bos_token", ""), ("eos_token", "<|im_end|>"))
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "deep": {"$ref": "#/$defs/deep"},
        "sure": {"type": ["boolean", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"deep": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "boolean"}}}}},
}
TOOLS = [
    tool("weather", WEATHER),
    tool("clock", {"type": "object", "properties": {}}),
    tool("strict", {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}),
]
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
CALLS = [
    [("weather", {"city": "北京 <b>&\n\"x\""})],
    [("weather", {"city": "Rom", "days": -3, "unit": "F", "deep": {"a": [True, False]}, "sure": None})],
    [("clock", {})],
    [("clock", {}), ("weather", {"city": " b ", "sure": True}), ("strict", {"n": 1.5})],
    [("weather", {"city": ""}), ("clock", {})],
]  # fmt: skip


def form_of(name):
    return call_format_of(TEMPLATES[name], SPECIAL, ("<|im_end|>",))


def written(name, calls, content=""):
    """The calls as the template writes them into an answer."""
    form = form_of(name)
    made = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": function, "arguments": json.dumps(arguments)}}
        for i, (function, arguments) in enumerate(calls)
    ]
    turns = for_template(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": content, "tool_calls": made}], form
    )
    context = {"messages": turns, "tools": TOOLS, "add_generation_prompt": False, **dict(SPECIAL)}
    text = sandbox_parent.shared().render(TEMPLATES[name], context).rpartition("<|im_start|>assistant\n")[2]
    return text.removesuffix("<|im_end|>\n").removeprefix("<think></think>\n").lstrip()


def parse(name, text, size):
    """Words and calls of a text that comes `size` characters at a time."""
    parser = ToolParser(TOOLS, None, form_of(name))
    deltas = [d for i in range(0, len(text), size) for d in parser.push(text[i : i + size])] + parser.finish()
    calls = {}
    for part in (p for d in deltas for p in d.get("tool_calls", ())):
        call = calls.setdefault(part["index"], ["", ""])
        call[0] += part["function"].get("name", "")
        call[1] += part["function"]["arguments"]
    return "".join(d.get("content", "") for d in deltas), [(name, arguments) for name, arguments in calls.values()]


def matcher_of(name, choice="required"):
    grammar = AnswerForm(None, TOOLS, choice, True, form_of(name)).grammar()
    matcher = llguidance.LLMatcher(LETTERS, llguidance.LLMatcher.grammar_from_lark(grammar.text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_template_writes_is_read_and_let_through(name):
    for calls in CALLS:
        if len(calls) > 1 and name in SINGLE:
            continue
        text = written(name, calls)
        for size in (1, 2, 5, 1000):
            words, found = parse(name, text, size)
            assert (words, [(n, json.loads(a)) for n, a in found]) == ("", calls), text
        for choice in ("required", "auto"):
            letters = list(text.encode())
            matcher = matcher_of(name, choice)
            assert matcher.try_consume_tokens(letters) == len(letters), (choice, text)
            assert matcher.is_accepting(), (choice, text)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in SINGLE])
def test_words_in_front_of_calls_are_words(name):
    for size in (1, 3, 1000):
        words, found = parse(name, "Let me <look.\n\n" + written(name, CALLS[0]), size)
        assert words == "Let me <look."
        assert [n for n, _ in found] == ["weather"]
        # What looks like a call and is none that was offered stays in the text.
        text = written(name, CALLS[2]).replace("clock", "click")
        words, found = parse(name, f"{text} done", size)
        assert (words.replace(" ", ""), found) == (f"{text}done".replace(" ", ""), [])


def random_answer(matcher, rng):
    """A text that the grammar lets through; None for one that does not end."""
    out = bytearray()
    while len(out) < 600:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=257, bitorder="little")
        letters = [int(i) for i in np.flatnonzero(bits)]
        if not letters or matcher.is_stopped() or (256 in letters and (len(letters) == 1 or rng.random() < 0.5)):
            return out.decode()
        letters = [i for i in letters if i != 256]
        marks = [i for i in letters if i in b"</>\"}]'abc1\n&"]
        out.append(rng.choice(marks if marks and rng.random() < 0.95 else letters))
        matcher.consume_token(out[-1])
    return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_grammar_lets_through_is_a_call_that_fits(name):
    rng = random.Random(name)
    answers = [text for text in (random_answer(matcher_of(name), rng) for _ in range(8)) if text is not None]
    assert answers
    for text in answers:
        words, calls = parse(name, text, 1 + rng.randrange(9))
        assert words == ""
        assert 1 <= len(calls) <= (1 if name in SINGLE else 8)
        for function, arguments in calls:
            assert jsonschema_rs.is_valid(SCHEMAS[function], json.loads(arguments)), (text, arguments)


@pytest.mark.parametrize("name", TAGGED)
def test_long_texts_stream_and_cut_ones_stay_cut(name):
    text = written(name, [("weather", {"city": "a long city " * 40, "days": 2})])
    parser = ToolParser(TOOLS, None, form_of(name))
    deltas = [d for c in text for d in parser.push(c)]
    assert len(deltas) > 200
    words, found = parse(name, text[: len(text) // 2], 7)
    assert words == ""
    assert found[0][1].startswith('{"city": "a long city')


def test_white_space_may_differ():
    text = "<tool_call> <function=weather>\n<parameter=city> Rom </parameter> <parameter=days>3</parameter></function></tool_call>"
    assert parse("a tag for each", text, 1) == ("", [("weather", '{"city": " Rom ", "days": 3}')])
    text = '[TOOL_CALLS] [ {"name" : "clock", "arguments":{}} ,{"name":"weather","arguments": {"city": "a"}}]'
    assert [n for n, _ in parse("a list with an end", text.replace("[TOOL_CALLS]", "<|tool_call|>"), 1)[1]] == [
        "clock",
        "weather",
    ]


HELD = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[a-c]{2}/[0-9]$"},
        "part": {"type": "string", "pattern": "x<y"},
        "day": {"type": "string", "format": "date"},
        "word": {"type": "string", "minLength": 2, "maxLength": 3},
    },
    "required": ["code", "part", "day", "word"],
}


@pytest.mark.parametrize("name", TAGGED)
def test_texts_between_tags_are_held_to_patterns_and_lengths(name, monkeypatch):
    monkeypatch.setitem(globals(), "TOOLS", [tool("held", HELD)])
    good = {"code": "ab/1", "part": " x<y", "day": "2024-02-29", "word": "abc"}
    for change in ({}, {"code": "abc"}, {"part": "x>y"}, {"day": "2023-02-29"}, {"word": "a"}, {"word": "abcd"}):
        text = written(name, [("held", {**good, **change})])
        letters = list(text.encode())
        matcher = matcher_of(name)
        taken = matcher.try_consume_tokens(letters)
        assert (taken == len(letters) and matcher.is_accepting()) == (not change), (text, text.encode()[:taken])
    # Texts of noise fit, too: one call each, without the pattern that noise does not find.
    short = {
        **HELD,
        "properties": {k: v for k, v in HELD["properties"].items() if k != "part"},
        "required": ["code", "day", "word"],
    }
    monkeypatch.setitem(globals(), "TOOLS", [tool("held", short)])
    rng, named = random.Random(name), {"type": "function", "function": {"name": "held"}}
    check = jsonschema_rs.validator_for(short, validate_formats=True)
    answers = [text for text in (random_answer(matcher_of(name, named), rng) for _ in range(8)) if text is not None]
    calls = [json.loads(arguments) for text in answers for _, arguments in parse(name, text, 5)[1]]
    assert calls
    assert all(check.is_valid(arguments) for arguments in calls), calls


def test_what_is_not_held_between_tags_is_named(tmp_path):
    engine = Engine.load(write_tiny(tmp_path / "tiny.gguf"), num_threads=1)
    engine.template = ChatTemplate.for_model(TEMPLATES["attributes"], tokenizer=engine.tokenizer)
    odd = {"a": {"type": "string", "pattern": "^a$|^b$"}, "b": {"type": "string", "format": "uuid"},
           "c": {"type": ["string", "integer"], "minimum": 1}, "d": {"type": "integer", "minimum": 1}}  # fmt: skip
    schema = {"type": "object", "properties": odd}
    constraint = constraint_for(engine, None, [tool("f", schema)], "auto")
    paths = ["a.pattern", "b.format", "c.minimum"]
    assert [one.path for one in constraint.loosened] == [f"parameters.properties.{path}" for path in paths]
    with pytest.raises(
        ValueError, match=r"^tools\[0\].function.parameters of f: properties.a.pattern cannot be guaranteed"
    ):
        constraint_for(engine, None, [tool("f", schema, strict=True)], "auto")


def test_what_a_text_between_tags_stands_for():
    root = {"$defs": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {"$ref": "#/$defs/b"}}}
    assert kinds_of({"$ref": "#/$defs/a"}, root) == {"string", "null"}
    assert kinds_of({"enum": [1, "x", None]}, root) == {"integer", "string", "null"}
    assert len(kinds_of({"$ref": "#/$defs/b"}, root)) == len(kinds_of({}, root)) == len(kinds_of(None, root)) == 7
    cases = [("12", {"string"}, "12"), ("12", {"integer"}, 12), ("12", {"number"}, 12), ("x", {"integer"}, "x"),
             ("null", {"string", "null"}, None), ("nil", {"string", "null"}, "nil"), ("True", {"boolean"}, True),
             ('{"a": [1]}', {"object"}, {"a": [1]}), ("{", {"object"}, "{"), ('"x"', {"string", "null"}, '"x"')]  # fmt: skip
    for text, kinds, value in cases:
        assert value_of(text, frozenset(kinds)) == value


def test_a_model_s_own_format_is_what_its_answers_are_held_to(tmp_path):
    engine = Engine.load(write_tiny(tmp_path / "tiny.gguf"), num_threads=1)
    engine.template = ChatTemplate.for_model(TEMPLATES["attributes"], tokenizer=engine.tokenizer)
    constraint = constraint_for(engine, None, TOOLS, "required")
    for token in engine.tokenizer.encode('<function name="weather"><param name="city">Rom</param></function>'):
        logits = np.zeros(engine.model.config.vocab_size, np.float32)
        constraint.apply(logits)
        assert logits[token] == 0
        constraint.accept(token)
    # A function by name is one call: nothing may follow.
    one = constraint_for(engine, None, TOOLS, {"type": "function", "function": {"name": "clock"}})
    for token in engine.tokenizer.encode('<function name="clock"></function>'):
        one.accept(token)
    assert one.finished
