"""Requests of the shapes that Claude Code and Codex send, with 15,000 tokens of instructions: they are answered, and the second
turn finds the first in the prefix cache."""

import json
from contextlib import closing

import openai
import pytest
from anthropic import Anthropic

from gangpao import openai_client as client

RULES = "\n".join(f"Rule {i}: read a file before it is changed, and say what was changed." for i in range(220))[:14_500]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


def agent_request(letters, messages):
    """What Claude Code sends, in our own words: a line of its version that changes, long instructions, tools of all kinds."""
    return {
        "model": "claude-opus-9", "max_tokens": 3, "stream": False, "metadata": {"user_id": "u"},
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{letters}; cc_entrypoint=cli; cch={letters};"},
            {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "You work on a program.", "cache_control": {"type": "ephemeral"}},
        ],
        "tools": [
            {"name": "Read", "description": "Reads a file.", "input_schema": SCHEMA, "defer_loading": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
            {"type": "tool_search_tool_regex_20251119", "name": "tool_search"},
        ],
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "messages": messages,
    }  # fmt: skip


FIRST = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "<reminder>Be brief.</reminder>"}, {"type": "text", "text": "Say hi."}],
    },
    {"role": "system", "content": "Helpers that may be called: none."},
]
LATER = [
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "server_tool_use", "id": "srv_1", "name": "tool_search", "input": {"pattern": "stop"}},
        {"type": "tool_search_tool_result", "tool_use_id": "srv_1", "content": {"type": "tool_search_tool_search_result"}},
        {"type": "tool_use", "id": "t1", "name": "Find", "input": {"query": "stop"}},
        {"type": "tool_use", "id": "t2", "name": "Read", "input": {"path": "a.pdf"}}]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "tool_reference", "tool_name": "Stop"}]},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [
            {"type": "document", "title": "a.pdf", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
        {"type": "search_result", "source": "https://a.example", "title": "A", "content": [{"type": "text", "text": "Found."}]},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Notes."}}]},
    {"role": "user", "content": "Go on."},
]  # fmt: skip


def test_an_agent_of_anthropics_kind(wide_server, wire):
    def ask(body):
        answer = wire.post(f"{wide_server.base_url}/v1/messages?beta=true", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    first = ask(agent_request("ab12c", FIRST))
    usage = first["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert prompt > 14_500
    assert [note.partition(":")[0] for note in first["gangpao"]["left_out"]] == ["tools.1", "tools.2"]
    second = ask(agent_request("9f00e", [*FIRST, *LATER]))
    assert second["usage"]["cache_read_input_tokens"] > prompt - 200
    notes = " ".join(second["gangpao"]["left_out"])
    assert "'document'" in notes
    assert "'tool_search_tool_result'" in notes or "'server_tool_use'" in notes
    assert "images" in notes
    with Anthropic(base_url=wide_server.base_url, api_key="none", max_retries=0, timeout=60) as api:
        body = {
            k: v
            for k, v in agent_request("00000", FIRST).items()
            if k not in ("stream", "context_management", "output_config")
        }
        with api.messages.stream(**body) as stream:
            assert stream.get_final_message().usage.output_tokens <= 3
        counted = api.messages.count_tokens(model="claude-any", messages=FIRST[:1], system=body["system"])
        assert counted.input_tokens < prompt


def test_what_is_said_of_a_tool_reference_and_a_document(wide_server):
    from gangpao.serve.api.anthropic import MessagesRequest, chat_of

    body = {"max_tokens": 1, "messages": [*FIRST, *LATER], "system": agent_request("x", [])["system"]}
    chat = chat_of(MessagesRequest.model_validate(body), body)
    assert [m.role for m in chat.messages] == ["system", "user", "system", "assistant", "tool", "tool", "user", "user"]
    assert chat.messages[0].content.startswith("Rule 0")
    assert chat.messages[4].content == "Tool available: Stop"
    assert chat.messages[5].content == "Error: "
    assert chat.messages[6].content == "A https://a.example\nFound.\nNotes."
    assert [call.name for call in chat.messages[3].calls] == ["Find", "Read"]
    plain = chat_of(MessagesRequest.model_validate({**body, "system": "a: x-anthropic-billing-header: b"}), body)
    assert plain.messages[0].content == "a: x-anthropic-billing-header: b"
    user = [{"role": "user", "content": "x-anthropic-billing-header: is what?"}]
    assert (
        chat_of(MessagesRequest.model_validate({**body, "messages": user}), body).messages[1].content
        == user[0]["content"]
    )


def codex_request(items):
    """What Codex sends, in our own words."""
    return {
        "model": "gpt-9-codex", "instructions": RULES, "input": items, "stream": True, "store": False, "max_output_tokens": 3,
        "tools": [
            {"type": "function", "name": "shell", "description": "Runs a command.", "strict": False, "parameters": SCHEMA},
            {"type": "custom", "name": "apply_patch", "description": "Changes files.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
            {"type": "namespace", "name": "mcp__files", "tools": [{"type": "function", "name": "list", "parameters": SCHEMA}]},
            {"type": "web_search", "external_web_access": False}, {"type": "local_shell"}],
        "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"},
    }  # fmt: skip


ITEMS = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Ask before you delete."}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hi."}]},
]
HISTORY = [
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}],
     "encrypted_content": "x"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {"type": "item_reference", "id": "msg_1"},
    {"type": "function_call", "call_id": "c1", "name": "list", "namespace": "mcp__files", "arguments": '{"path": "a"}'},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "a.txt"}]},
    {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin", "status": "completed"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": {"content": "done", "success": True}},
    {"type": "local_shell_call", "call_id": "c3", "status": "completed", "action": {"type": "exec", "command": ["ls"]}},
    {"type": "local_shell_call_output", "call_id": "c3", "output": ""},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
]  # fmt: skip


def test_an_agent_of_the_responses_api(wide_server, wire):
    def ask(body):
        answer = wire.post(f"{wide_server.base_url}/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        events = [json.loads(e.partition("data: ")[2]) for e in answer.text.split("\n\n") if e]
        return events[-1]["response"]

    first = ask(codex_request(ITEMS))
    assert first["usage"]["input_tokens"] > 14_500
    assert len(first["gangpao"]["left_out"]) == 3
    second = ask(codex_request([*ITEMS, *HISTORY]))
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > first["usage"]["input_tokens"] - 200
    assert sum("'web_search_call'" in n or "'item_reference'" in n for n in second["gangpao"]["left_out"]) == 2


def test_calls_go_back_under_the_clients_own_names(wide_server):
    tools = [t for t in codex_request([])["tools"] if t["type"] in ("custom", "namespace")]
    with openai.OpenAI(base_url=f"{wide_server.base_url}/v1", api_key="none", max_retries=0, timeout=60) as api:
        ask = {
            "model": "wide",
            "input": "hi",
            "max_output_tokens": 200,
            "temperature": 0,
            "parallel_tool_calls": False,
            "tools": tools,
        }
        tiny = {"type": "string", "maxLength": 3}
        tools[1]["tools"][0] = {**tools[1]["tools"][0], "parameters": {
            "type": "object", "properties": {"path": tiny}, "required": ["path"], "additionalProperties": False}}  # fmt: skip
        named = {"type": "function", "name": "list", "namespace": "mcp__files"}
        (call,) = api.responses.create(**ask, tool_choice=named).output
        assert (call.type, call.name, call.namespace) == ("function_call", "list", "mcp__files")
        events = list(api.responses.create(**ask, tool_choice={"type": "custom", "name": "apply_patch"}, stream=True,
                                              extra_body={"stop_token_ids": []}))  # fmt: skip
        kinds = [e.type for e in events]
        assert "response.custom_tool_call_input.done" in kinds
        assert [e.sequence_number for e in events] == list(range(len(events)))
        (item,) = events[-1].response.output
        assert (item.type, item.name) == ("custom_tool_call", "apply_patch")


@pytest.mark.parametrize("model", ["claude-small", "anything/else", "wide", "wide:latest", None])
def test_names_that_nobody_has(wide_server, wire, model):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "model": model}
    for path in ("/v1/chat/completions", "/chat/completions", "/v1/v1/messages", "/messages", "/api/chat"):
        answer = wire.post(wide_server.base_url + path, json={**body, "stream": False, "options": {"num_predict": 1}})
        assert answer.status_code == 200, (path, answer.text)
        assert answer.json()["model"] == "wide"


def test_aliases_are_listed_and_short_paths_say_errors_in_their_own_way(wide_server, tiny_server, wire):
    for path in ("/v1/models", "/models"):
        listed = wire.get(wide_server.base_url + path).json()["data"]
        assert [(m["id"], m.get("root")) for m in listed] == [("wide", None), ("claude-small", "wide")]
    assert wire.get(f"{wide_server.base_url}/models/other").json()["root"] == "wide"
    with closing(client.Server(wide_server.base_url, None, False)) as remote:  # as `gangpao chat --connect` asks
        assert remote.models() == ["wide"]
    assert wire.post(f"{wide_server.base_url}/messages", json={}).json()["type"] == "error"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert wire.post(f"{tiny_server.base_url}/chat/completions", json=body).status_code == 404
    assert wire.post(f"{tiny_server.base_url}/v1/chat/completions", json={**body, "model": "other"}).status_code == 404
