"""Functions of a request: what is refused, and how an answer's text becomes calls however it is cut."""

import itertools
import json
import random

import pytest

from gangpao.serve.answers.tool_calls import ToolParser, offered


def function(name="get_weather", **more):
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [function(), function("clock")]


def said(name="get_weather", arguments='{"city": "北京"}'):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def parse(text, cuts=()):
    """(content, calls, deltas) of a text that comes in pieces."""
    parser = ToolParser(TOOLS)
    at = [0, *sorted(cuts), len(text)]
    deltas = [d for a, b in itertools.pairwise(at) for d in parser.push(text[a:b])]
    deltas += parser.finish()
    calls = {}
    for delta in deltas:
        assert len(delta) == 1  # words or calls, and never an empty list of calls
        for part in delta.get("tool_calls", ()):
            if part["index"] not in calls:
                assert part["type"] == "function"
                assert part["id"].startswith("call_")
                assert part["function"] == {"name": part["function"]["name"], "arguments": ""}
                calls[part["index"]] = {"name": part["function"]["name"], "arguments": "", "id": part["id"]}
            else:
                assert list(part) == ["index", "function"]
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert all(delta.get("content", "x") and delta.get("tool_calls", [1]) for delta in deltas)
    assert parser.called == bool(calls)
    assert list(calls) == list(range(len(calls)))
    assert len({call["id"] for call in calls.values()}) == len(calls)
    words = "".join(d.get("content", "") for d in deltas)
    return words, [(call["name"], call["arguments"]) for call in calls.values()], deltas


CASES = {
    "one call": (said(), "", [("get_weather", '{"city": "北京"}')]),
    "words first": ("Let me look.\n" + said(), "Let me look.", [("get_weather", '{"city": "北京"}')]),
    "two calls": (said() + "\n" + said("clock", "{}"), "", [("get_weather", '{"city": "北京"}'), ("clock", "{}")]),
    "no call": ("  Plain <tool_cal\n words \n", "  Plain <tool_cal\n words \n", []),
    "nested": (said(arguments='{"a": {"b": ["}", "\\"}"]}}'), "", [("get_weather", '{"a": {"b": ["}", "\\"}"]}}')]),
    "mark in a string": (said(arguments='{"a": "</tool_call>"}'), "", [("get_weather", '{"a": "</tool_call>"}')]),
    "other spacing": (
        '<tool_call>{ "name":"clock" ,"parameters":{}}</tool_call>', "", [("clock", "{}")]),
    "unknown function": (said("rm"), said("rm"), []),
    "broken": ("<tool_call>\nnot JSON\n</tool_call> so", "<tool_call>\nnot JSON\n</tool_call> so", []),
    "never closed": ("a <tool_call>\nbla", "a<tool_call>\nbla", []),
    "cut in the arguments": (said()[:-15], "", [("get_weather", '{"city": "北京"')]),
    "cut in the name": ('Hm. <tool_call>\n{"name": "get_w', "Hm.", []),
    "cut in the second": (said("clock", "{}") + '\n<tool_call>\n{"na', "", [("clock", "{}")]),
    "no mark": ('{"name": "clock", "arguments": {}}', "", [("clock", "{}")]),
    "a fence": (
        '```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Rom"\n  }\n}\n```', "",
        [("get_weather", '{\n    "city": "Rom"\n  }')]),
    "two fences": (
        '```\n{"name": "clock", "arguments": {}}\n```\n```json\n{"name":"clock","parameters":{"a": 1}}```', "",
        [("clock", "{}"), ("clock", '{"a": 1}')]),
    "JSON that is no call": ('```json\n{"name": "Anna"}\n```', '```json\n{"name": "Anna"}\n```', []),
    "JSON with more": ('{"name": "clock", "age": 3}', '{"name": "clock", "age": 3}', []),
    "a fence that is code": ("```js\nlet a = {}\n```", "```js\nlet a = {}\n```", []),
    "a call in the middle": ('So: {"name": "clock", "arguments": {}}', 'So: {"name": "clock", "arguments": {}}', []),
    "words behind": (said() + "\nDone.\n", "\nDone.", [("get_weather", '{"city": "北京"}')]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_calls_are_found_however_the_text_is_cut(case):
    text, words, calls = CASES[case]
    assert parse(text)[:2] == (words, calls)
    assert parse(text, range(1, len(text)))[:2] == (words, calls)
    rng = random.Random(case)
    for _ in range(30):
        assert parse(text, rng.sample(range(len(text)), min(5, len(text))))[:2] == (words, calls)


def test_words_and_arguments_stream():
    text = "Some words first. " * 3 + said(arguments=json.dumps({"text": "a long one " * 20}))
    deltas = parse(text, range(1, len(text)))[2]
    assert len([d for d in deltas if "content" in d]) > 30
    assert len([d for d in deltas if "tool_calls" in d]) > 200


def test_what_is_no_call_does_not_wait_for_ever():
    parser = ToolParser(TOOLS)
    out = [parser.push("<tool_call>"), *(parser.push("blah blah ") for _ in range(60))]
    assert any(out)


def names(offer):
    return [f["name"] for f in offer.functions]


def test_tool_choice():
    assert (names(offered(TOOLS, None)), offered(TOOLS, None).must) == (["get_weather", "clock"], False)
    assert offered(TOOLS, "auto") == offered(TOOLS, None)
    assert names(offered(TOOLS, "none")) == names(offered(None, None)) == []
    assert offered(TOOLS, "required").must
    assert not offered(TOOLS, "required").single
    one = offered(TOOLS, {"type": "function", "function": {"name": "clock"}})
    assert (names(one), one.must, one.single, one.places) == (["clock"], True, True, (1,))
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("clock")]}}
    assert (names(offered(TOOLS, some)), offered(TOOLS, some).must) == (["clock"], False)


@pytest.mark.parametrize(
    ("tools", "choice", "match"),
    [
        ([{"type": "function"}], None, r"tools\[0\]: must look like"),
        ([{"type": "web_search", "function": {"name": "a"}}], None, r"tools\[0\]: must look like"),
        (["x"], None, r"tools\[0\]"),
        ([function("")], None, r"tools\[0\].function.name"),
        ([function("a b")], None, "letters"),
        ([function("a\"%json")], None, "letters"),
        ([function(3)], None, "letters"),
        ([function(), function()], None, "two functions called get_weather"),
        ([function(f"f{i}") for i in range(129)], None, "at most 128"),
        (None, "required", "no tools"),
        (TOOLS, "maybe", "tool_choice: must be"),
        (TOOLS, {"type": "function"}, "tool_choice: must be"),
        (TOOLS, {"type": "function", "function": {"name": "rm"}}, "no function called 'rm'"),
        (TOOLS, {"type": "allowed_tools", "allowed_tools": {"tools": []}}, "tool_choice: must be"),
        (TOOLS, {"type": "allowed_tools", "allowed_tools": 3}, "tool_choice: must be"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_by_name(tools, choice, match):
    with pytest.raises(ValueError, match=match):
        offered(tools, choice)
