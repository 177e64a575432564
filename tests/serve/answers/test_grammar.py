"""Answers of a random model conform to every schema, hostile schemas are refused quickly, and the grammar ends answers."""

import json
import queue
import random

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.sequences import Request
from gangpao.serve.answers import json_schema
from gangpao.serve.answers.grammar import AnswerForm, constraint_for
from gangpao.serve.answers.tool_calls import ToolParser
from gangpao.serve.http import json_bounds
from tests.core_speed import seconds_of
from tests.engine.tiny import write_tiny

jsonschema_rs = pytest.importorskip("jsonschema_rs")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine.load(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf"), num_threads=1)


@pytest.fixture(scope="module")
def scheduler(engine):
    running = Scheduler(engine, batch=8, queue=64)
    yield running
    running.close()


def ask(scheduler, constraint, seed, *, temperature=1.5, max_tokens=400, prompt="hello"):
    """Queue an answer; a function that waits for its text and finish reason."""
    events = queue.Queue()
    engine = scheduler.engine
    params = SamplingParams(
        temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=seed, max_tokens=max_tokens
    )
    handle = scheduler.submit(Request(engine.tokenizer.encode(prompt), params, constraint=constraint), events.put)

    def wait():
        while True:
            event = events.get(timeout=60)
            if isinstance(event, Exception):
                raise event
            if event.finish_reason:
                return handle.text, event.finish_reason

    return wait


def json_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def random_schema(rng, depth=0):
    """A schema of the kinds programs send; strings and numbers are short so that most answers of noise end."""
    simple = [
        lambda: {"type": "string", "maxLength": rng.randint(0, 6)},
        lambda: {"type": "string", "enum": [f'v{i}é"\\' for i in range(rng.randint(1, 4))]},
        lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 999)},
        lambda: {"type": "number", "minimum": 0, "maximum": 1},
        lambda: {"type": "boolean"},
        lambda: {"type": ["null", "boolean"]},
        lambda: {"const": rng.choice([None, 3, "x", [1, {"a": "b"}]])},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", r"^\d{4}-\d{2}$", "^(foo|bar)+x$"])},
        lambda: {"type": "string", "format": rng.choice(["date", "uuid", "int32", "ipv4"])},
    ]
    nested = [
        lambda: {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(0, 3)},
        lambda: {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]},
        lambda: random_object(rng, depth),
        lambda: random_object(rng, depth),
    ]
    return rng.choice(simple if depth > 2 else [*simple, *nested])()


def random_object(rng, depth=0):
    names = rng.sample(["a", "b", "name", "市", 'q"', "type", "format", "enum"], rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }


def check_many(scheduler, count):
    """Answers of noise to `count` random schemas; how many of them ended."""
    ended = 0
    for start in range(0, count, 8):
        asked = []
        for seed in range(start, min(start + 8, count)):
            schema = random_schema(random.Random(seed)) if seed % 2 else random_object(random.Random(seed))
            constraint = constraint_for(scheduler.engine, json_format(schema), None, None)
            asked.append((schema, ask(scheduler, constraint, seed)))
        for schema, wait in asked:
            text, reason = wait()
            if reason == "stop":
                ended += 1
                assert jsonschema_rs.is_valid(schema, json.loads(text)), (schema, text)
    return ended


def test_every_answer_that_ends_conforms(scheduler):
    assert check_many(scheduler, 64) >= 60


@pytest.mark.slow
def test_every_answer_of_thousands_conforms(scheduler):
    assert check_many(scheduler, 4000) >= 3800


def test_json_mode_is_an_object(scheduler):
    waits = [
        ask(scheduler, constraint_for(scheduler.engine, {"type": "json_object"}, None, None), s) for s in range(16)
    ]
    ended = [text for text, reason in (wait() for wait in waits) if reason == "stop"]
    assert all(isinstance(json.loads(text), dict) for text in ended)
    assert ended


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "v": {"type": "integer", "minimum": 0, "maximum": 9},
            "kids": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}}, "additionalProperties": False}}},
        {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
                   {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
         "additionalProperties": False, "properties": {"a": {}, "b": {}}},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
        {"type": "object", "properties": {"kind": {"enum": ["x", "y"]}}, "required": ["kind"],
         "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    ],
)  # fmt: skip
def test_schemas_with_more_to_them(scheduler, schema):
    waits = [ask(scheduler, constraint_for(scheduler.engine, json_format(schema), None, None), s) for s in range(12)]
    answers = [wait() for wait in waits]
    assert sum(reason == "stop" for _, reason in answers) >= 4
    assert all(jsonschema_rs.is_valid(schema, json.loads(text)) for text, reason in answers if reason == "stop")


def test_an_answer_ends_where_its_form_does_and_says_when_it_was_cut(scheduler):
    fixed = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"], "additionalProperties": False}
    for form in (
        json_format(fixed),
        {"type": "json_object", "schema": fixed},
        {"type": "json_schema", "schema": fixed},
    ):
        assert ask(scheduler, constraint_for(scheduler.engine, form, None, None), 1)() == ('{"a": "b"}', "stop")
    constraint = constraint_for(scheduler.engine, json_format(fixed), None, None)
    assert ask(scheduler, constraint, 1, max_tokens=3)() == ('{"a', "length")


def tool(name, schema=None, **more):
    return {"type": "function", "function": {"name": name, **({"parameters": schema} if schema else {}), **more}}


CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
TOOLS = [tool("weather", CITY), tool("clock")]


def calls_of(text, tools=TOOLS):
    parser = ToolParser(tools)
    deltas = [*(d for c in text for d in parser.push(c)), *parser.finish()]
    calls = {}
    for part in (p for d in deltas for p in d.get("tool_calls", ())):
        name, arguments = calls.get(part["index"], ("", ""))
        calls[part["index"]] = (name + part["function"].get("name", ""), arguments + part["function"]["arguments"])
    return "".join(d.get("content", "") for d in deltas), list(calls.values())


@pytest.mark.parametrize(
    ("choice", "parallel", "names"),
    [
        ("required", True, {"weather", "clock"}),
        ("required", False, {"weather", "clock"}),
        ({"type": "function", "function": {"name": "clock"}}, False, {"clock"}),
        ({"type": "function", "function": {"name": "weather"}}, True, {"weather"}),
    ],
)
def test_a_required_call_is_made_and_fits(scheduler, choice, parallel, names):
    waits = [ask(scheduler, constraint_for(scheduler.engine, None, TOOLS, choice, parallel), s) for s in range(8)]
    for text, reason in (wait() for wait in waits):
        assert reason == "stop"
        words, calls = calls_of(text)
        assert words == ""
        assert 1 <= len(calls) <= (8 if parallel and choice == "required" else 1)  # a function by name is one call
        for name, arguments in calls:
            assert name in names
            assert jsonschema_rs.is_valid(CITY if name == "weather" else {"maxProperties": 0}, json.loads(arguments))


def test_with_tool_choice_auto_text_is_free_until_it_calls(engine):
    constraint = constraint_for(engine, None, TOOLS, "auto")
    assert not constraint.whole
    free = allowed(engine, constraint)
    assert len(free) > 100  # bytes that begin no character may not come
    said(engine, constraint, "Hm.\n<tool_call>")
    assert said(engine, constraint, '\n{"name": "') == 11
    assert allowed(engine, constraint) == {"w", "c"}
    said(engine, constraint, 'clock", "arguments": {}}\n</tool_call>')
    assert allowed(engine, constraint) == {"\n", "<|im_end|>", "<|endoftext|>"}
    said(engine, constraint, "\n<tool_call>")
    # And plain text may end at any time.
    other = constraint_for(engine, None, TOOLS, "auto")
    said(engine, other, "a < b <tool")
    assert "<|im_end|>" in allowed(engine, other)
    assert "<|im_start|>" not in allowed(engine, other)


def test_calls_without_the_mark_are_held_to_the_schema_too(engine):
    for opening in ('{"name": "weather", "arguments": ', '```json\n{\n  "name": "weather",\n  "arguments": '):
        constraint = constraint_for(engine, None, TOOLS, "auto")
        said(engine, constraint, opening)
        said(engine, constraint, '{\n    "')
        assert allowed(engine, constraint) == {"c"}
        said(engine, constraint, 'city": "Rom"\n  }\n}')
        assert "<|im_end|>" in allowed(engine, constraint)
    # Other JSON, and a call's JSON later than at the start, is words.
    for words in (
        '{"name": "Anna", "age": 3}',
        'So: {"name": "weather", "arguments": 3}',
        '{"name": "weather", "x": 1}',
    ):
        constraint = constraint_for(engine, None, TOOLS, "auto")
        said(engine, constraint, words)
        assert "<|im_end|>" in allowed(engine, constraint)


def test_with_tools_and_a_form_an_answer_is_one_or_the_other(engine):
    constraint = constraint_for(engine, {"type": "json_object"}, TOOLS, "auto")
    assert constraint.whole
    assert allowed(engine, constraint) == {"{", "<"}


def allowed(engine, constraint):
    """The pieces that may come next."""
    logits = np.zeros(engine.model.config.vocab_size, np.float32)
    constraint.apply(logits)
    return {engine.tokenizer.token_bytes(int(i)).decode("utf-8", "replace") for i in np.flatnonzero(logits == 0)}


def said(engine, constraint, text):
    """Let the constraint accept a text that it allows; how many tokens it had."""
    ids = engine.tokenizer.encode(text)
    for token in ids:
        logits = np.zeros(engine.model.config.vocab_size, np.float32)
        constraint.apply(logits)
        assert logits[token] == 0, (text, engine.tokenizer.token_bytes(token))
        constraint.accept(token)
    return len(ids)


def test_forced_tokens_are_what_comes(engine):
    fixed = {"type": "object", "properties": {"long_name": {"type": "boolean"}}, "required": ["long_name"],
             "additionalProperties": False}  # fmt: skip
    constraint = constraint_for(engine, json_format(fixed), None, None)
    forced = constraint.forced()
    assert engine.tokenizer.decode(forced).startswith('{"long_name":')
    for token in forced:
        assert allowed(engine, constraint) == {engine.tokenizer.token_bytes(token).decode()}
        constraint.accept(token)
    said(engine, constraint, "true}")
    assert constraint.finished
    assert constraint.forced() == []


def test_a_cached_grammar_is_not_shared_between_answers(engine):
    first, second = (constraint_for(engine, {"type": "json_object"}, None, None) for _ in range(2))
    said(engine, first, '{"a": 1}')
    assert allowed(engine, second) == {"{"}


def test_no_constraint_where_every_answer_will_do():
    assert AnswerForm(None, None, None).free
    assert AnswerForm({"type": "text"}, [], "auto").free
    assert AnswerForm(None, TOOLS, "none").free


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HOSTILE = {
    "100 deep": (deep(100), "levels"),
    "a megabyte of pattern": ({"type": "string", "pattern": "a" * 1_000_000}, "pattern"),
    "a pattern that multiplies": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "repeats"),
    "patterns together": ({"anyOf": [{"type": "string", "pattern": "a{999}"} for _ in range(99)]}, "repeats"),
    "a pattern in a name": ({"type": "object", "patternProperties": {"(x{999}){999}": {}}}, "repeats"),
    "a remote reference": ({"$ref": "http://127.0.0.1:1/schema.json"}, "leads elsewhere"),
    "a reference to a file": ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "leads elsewhere"),
    "all the values that JSON may hold": ({"enum": list(range(json_bounds.MAX_VALUES))}, "values"),
    "all the names": ({"enum": [{str(i): 0 for i in range(json_bounds.MAX_VALUES)}]}, "values"),
    "long strings": ({"enum": ["x" * 1000 + str(i) for i in range(200)]}, "characters"),
    "many properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(501)}}, "properties"),
    "an awkward multiple": ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
    "an awkward fraction": ({"type": "number", "multipleOf": 0.123457}, "multipleOf"),
    "no multiple": ({"type": "number", "multipleOf": 0}, "multipleOf"),
    "a list": ([], "must be a JSON schema"),
    "nothing": (None, "must be a JSON schema"),
    "true": (True, "must be a JSON schema"),
    "a type that is none": ({"type": "strin"}, "cannot be guaranteed"),
    "nothing fits": ({"type": "integer", "minimum": 5, "maximum": 3}, "cannot be guaranteed"),
    "a broken pattern": ({"type": "string", "pattern": "("}, "cannot be guaranteed"),
    "a look ahead": ({"type": "string", "pattern": "(?=a)b"}, "cannot be guaranteed"),
    "different items": ({"type": "array", "uniqueItems": True}, "cannot be guaranteed"),
    "itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "cannot be guaranteed"),
    "nowhere": ({"$ref": "#/$defs/absent"}, "cannot be guaranteed"),
    "half a character": ({"const": "\ud800"}, "cannot be guaranteed"),
    "not a number": ({"const": float("nan")}, "cannot be guaranteed"),
    "its own options": ({"type": "object", "x-guidance": {"lenient": True}, "uniqueItems": True, "not": {}}, "guaranteed"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_schema_is_refused_quickly(engine, case):
    schema, match = HOSTILE[case]
    constraint_for(engine, {"type": "json_object"}, None, None)  # the table of the vocabulary
    for form, tools in (
        (json_format(schema), None),
        (None, [tool("f", schema, strict=True)]),
    ):
        if tools and not schema:
            continue  # a function without parameters
        errors = []

        def refused(form=form, tools=tools, errors=errors):
            with pytest.raises(ValueError, match=match if form else f'{match}|must be "object"') as error:
                constraint_for(engine, form, tools, "auto")
            errors.append(str(error.value))

        assert seconds_of(refused, 0.5) < 1  # 0.3 s at most; minutes without the bounds
        assert errors[0].startswith(("response_format", "tools[0].function.parameters"))
        assert len(errors[0]) < 400


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"type": "xml"}, "type must be text"),
        ({"type": ["a"]}, "type must be text"),
        ({"type": "json_schema"}, "must be a JSON schema"),
        ({"type": "json_schema", "json_schema": 3}, "must look like"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "must be a JSON schema"),
    ],
)
def test_a_malformed_format_is_refused(form, match):
    with pytest.raises(ValueError, match=match):
        AnswerForm(form, None, None)


def test_where_no_guarantee_is_asked_for_what_cannot_be_held_is_ignored(engine):
    odd = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 2}},
        "not": {"const": 1},
    }
    assert constraint_for(engine, json_format(odd, strict=False), None, None)
    assert constraint_for(engine, None, [tool("f", odd)], "required")
    with pytest.raises(ValueError, match="guaranteed"):
        constraint_for(engine, None, [tool("f", odd, strict=True)], "required")


def test_unknown_formats_are_notes_and_names_are_not_keywords():
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "int32"}, "default": {"type": "string", "format": "x"}},
        "default": {"format": "int32"},
    }
    ready = json_schema.ready(schema, "s", exact=True)
    assert ready["properties"] == {"format": {"type": "string"}, "default": {"type": "string"}}
    assert "default" not in ready  # says nothing to a grammar
    assert schema["properties"]["format"]["format"] == "int32"


def test_usual_patterns_are_cheap():
    for pattern in (
        r"^[a-z]{1,64}@[a-z]{1,255}\.[a-z]{2,63}$",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^[\p{L}\]{1}]{2,}\{3\}(a|b){2}$",
    ):
        assert json_schema.ready({"type": "string", "pattern": pattern}, "s", exact=True)
