"""What a grammar does not hold of a schema is named, with its path, and no more than that is given up."""

import logging
import re
import time

import pytest

from gangpao.engine.generate import Engine
from gangpao.serve.answers import grammar, json_schema
from gangpao.serve.answers.grammar import constraint_for
from gangpao.serve.answers.loosen import Budget
from gangpao.serve.answers.tool_calls import offered, sound
from tests.engine.tiny import write_tiny
from tests.serve.answers.test_grammar import allowed, json_format, said, tool


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine.load(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf"), num_threads=1)


def an_object(schema, **more):
    return {"type": "object", "properties": {"n": {"type": "integer"}, "x": schema}, "required": ["n"], **more}


TWO = {"type": "object", "properties": {"a": {}, "b": {}}}
# A property's schema -> the keyword in it that is passed over.
IGNORED = {
    "not": ({"not": {"type": "string"}}, "not"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "if": ({"if": {"type": "string"}}, "if"),
    "contains": ({"type": "array", "contains": {"type": "string"}}, "contains"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    "minProperties": ({**TWO, "minProperties": 1}, "minProperties"),
    "dependentRequired": ({**TWO, "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "in items": ({"type": "array", "items": {"not": {"const": 3}}}, "items.not"),
    "in a union": ({"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "null"}]}, "anyOf[0].uniqueItems"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_a_keyword_that_is_passed_over_is_named(engine, case, caplog):
    schema, path = IGNORED[case]
    tools = [tool("fine", an_object({"type": "string"})), tool("other", an_object(schema))]
    with caplog.at_level(logging.WARNING, "gangpao.serve"):
        constraint = constraint_for(engine, None, tools, "required")
    assert [one[:2] for one in constraint.loosened] == [("other", f"parameters.properties.x.{path}")]
    assert constraint.loosened[0].why
    assert str(constraint.loosened[0]) in caplog.text
    said(engine, constraint, '<tool_call>\n{"name": "other", "arguments": {"n": ')
    assert "t" not in allowed(engine, constraint)  # the rest is held
    # So it is in a form that is not strict; in a strict one it is refused.
    loose = constraint_for(engine, json_format(an_object(schema), strict=False), None, None)
    assert [one[:2] for one in loose.loosened] == [("response_format", f"properties.x.{path}")]
    with pytest.raises(ValueError, match=re.escape(f"properties.x.{path} cannot be guaranteed")):
        constraint_for(engine, json_format(an_object(schema)), None, None)


def test_the_schema_stays_beside_another_fault(engine):
    tools = [tool("f", an_object({"not": {}, "type": "string", "pattern": r"\bfoo"}))]
    paths = [one.path for one in constraint_for(engine, None, tools, "auto").loosened]
    assert paths == ["parameters.properties.x.pattern", "parameters.properties.x.not"]


def test_strict_functions_beside_loose_ones(engine):
    exact = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tools = [tool("exact", exact, strict=True), tool("loose", an_object({"not": {}}))]
    assert [one.tool for one in constraint_for(engine, None, tools, "auto").loosened] == ["loose"]


def test_where_time_runs_out_the_whole_is_named(engine, monkeypatch):
    monkeypatch.setattr(grammar, "Budget", lambda: Budget(tries=3))
    constraint = constraint_for(engine, None, [tool("f", an_object({"not": {}}))], "auto")
    assert [tuple(one) for one in constraint.loosened] == [("f", "parameters", 'Unimplemented keys: ["not"]')]


def test_many_functions_with_such_keywords_are_fast(engine):
    tools = [tool(f"f{i}", an_object({"type": "array", "uniqueItems": True})) for i in range(128)]
    start = time.perf_counter()
    constraint = constraint_for(engine, None, tools, "auto")
    assert time.perf_counter() - start < 10
    assert {one.tool for one in constraint.loosened} == {f"f{i}" for i in range(128)}


BORDER = {"type": "string", "pattern": r"\bfoo"}


@pytest.mark.parametrize("key", ["anyOf", "oneOf"])
@pytest.mark.parametrize(
    ("branches", "kept", "paths"),
    [
        ([BORDER, {"type": "null"}], [{"type": "string"}, {"type": "null"}], ["[0].pattern"]),
        ([{"type": "null"}, BORDER], [{"type": "null"}, {"type": "string"}], ["[1].pattern"]),
        ([None, BORDER, {"type": "null"}], [{}, {"type": "string"}, {"type": "null"}], ["[0]", "[1].pattern"]),
    ],
)
def test_the_branch_at_fault_is_named(key, branches, kept, paths):
    found, faults = json_schema.held(an_object({key: branches}), "s", Budget(), exact=False)
    assert found["properties"]["x"] == {key: kept}
    assert [fault.path for fault in faults] == [f"properties.x.{key}{path}" for path in paths]


def test_a_branch_that_matches_nothing_is_no_fault():
    branches = [{"type": "null"}, BORDER]
    found, faults = json_schema.held(an_object({"type": "string", "anyOf": branches}), "s", Budget(), exact=False)
    assert found["properties"]["x"] == {"type": "string", "anyOf": [{"type": "null"}, {"type": "string"}]}
    assert [fault.path for fault in faults] == ["properties.x.anyOf[1].pattern"]


def test_a_fault_behind_a_reference_is_named_where_it_is():
    schema = {"$defs": {"A": an_object(BORDER)}, **an_object({"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]})}
    found, faults = json_schema.held(schema, "s", Budget(), exact=False)
    assert found["properties"] == schema["properties"]
    assert [fault.path for fault in faults] == ["$defs.A.properties.x.pattern"]


# --- tools that cannot be offered

BAD = {
    "a space": (tool("c d"), ".function.name"),
    "no letter": (tool(""), ".function.name"),
    "no name": (tool(None), ".function.name"),
    "a long name": (tool("x" * 200), ".function.name"),
    "a second one": (tool("good"), ".function.name"),
    "no function": ({"type": "function"}, ""),
    "null": (None, ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tool_that_cannot_be_offered_is_left_out_alone(case):
    bad, where = BAD[case]
    tools = [tool("good"), bad, tool("last")]
    for choice in (None, "auto", "required", {"type": "function", "function": {"name": "last"}}):
        kept, notes = sound(tools, choice)
        assert kept == (tools[0], tools[2])
        assert len(notes) == 1
        assert notes[0].startswith(f"tools.1{where}: the tool is left out: ")
        assert offered(kept, choice).functions[-1]["name"] == "last"


def test_a_tool_that_is_strict_or_named_stays_to_be_refused():
    strict = [tool("good"), tool("c d", strict=True)]
    named = [tool("good"), tool("c d")]
    choice = {"type": "function", "function": {"name": "c d"}}
    among = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [choice]}}
    for tools, chosen in ((strict, None), (named, choice), (named, among)):
        kept, notes = sound(tools, chosen)
        assert (kept, notes) == (tuple(tools), ())
        with pytest.raises(ValueError, match=r"tools\[1\].function.name: letters"):
            offered(kept, chosen)


def test_the_client_is_told(wide_server, wire):
    good = tool("good", an_object({"not": {"type": "string"}}))
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [good, tool("c d")], "max_tokens": 4}
    url = f"{wide_server.base_url}/v1/chat/completions"
    answer = wire.post(url, json=body)
    assert answer.status_code == 200, answer.text
    notes = answer.json()["gangpao"]["left_out"]
    assert len(notes) == 2
    assert notes[0].startswith("tools.1.function.name: the tool is left out: letters")
    assert notes[1] == 'good: parameters.properties.x.not: Unimplemented keys: ["not"]'
    assert wire.post(url, json={**body, "tools": [good, tool("c d", strict=True)]}).status_code == 400
    # Where none can be offered, the answer is one without tools.
    assert wire.post(url, json={**body, "tools": [tool("c d")]}).status_code == 200
    assert wire.post(url, json={**body, "tools": [tool("c d")], "tool_choice": "required"}).status_code == 400
