"""Bodies that nobody sane would send to every API, and to a chat with functions and forms (S5)."""

import copy
import json
import random

import pytest

from tests.serve.http.test_bodies import value

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2}}, "required": ["a"]}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
HI = {"role": "user", "content": "hi"}

GOOD = {
    "/v1/chat/completions": {
        "messages": [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "call_1", "content": "x"}],
        "tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": True, "max_tokens": 3, "stream": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    },
    "/v1/messages": {
        "messages": [HI, {"role": "assistant", "content": [
                         {"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "b"}}]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}],
        "system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "input_schema": SCHEMA}], "max_tokens": 3,
        "tool_choice": {"type": "auto"}, "stop_sequences": ["z"], "temperature": 0.5, "stream": False,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
    "/v1/messages/count_tokens": {"messages": [HI], "system": "s", "tools": [{"name": "f", "input_schema": SCHEMA}]},
    "/v1/responses": {
        "input": [HI, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "x"}],
        "instructions": "i", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, "max_output_tokens": 3, "stream": False,
        "temperature": 0.5, "metadata": {"a": "b"},
    },
    "/api/chat": {
        "messages": [HI, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                     {"role": "tool", "content": "x"}],
        "tools": [FUNCTION], "format": SCHEMA, "options": {"num_predict": 3, "temperature": 0, "stop": ["z"]}, "stream": False,
    },
    "/api/generate": {"prompt": "p", "system": "s", "raw": False, "format": "json", "options": {"num_predict": 3}, "stream": False},
    "/api/show": {"model": "smollm2-135m"},
}  # fmt: skip


def damaged(rng, body):
    """The body with up to three of its values, anywhere in it, replaced, dropped or renamed."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        place, key = body, rng.choice(list(body))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.75:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if rng.random() < 0.8:
            place[key] = value(rng)
        else:
            del place[key]
        if not body:
            break
    return body


def limited(route, body):
    """The body with a limit where it lost its own: the model would go on until its context is full."""
    if route.startswith("/api"):
        options = body.get("options") if body.get("options") is not None else {}
        if isinstance(options, dict):
            limit = options.get("num_predict")
            if limit is None or (isinstance(limit, int | float) and limit <= 0):
                body["options"] = options | {"num_predict": 3}
    name = "max_output_tokens" if route == "/v1/responses" else "max_tokens"
    if body.get(name) is None and body.get("max_completion_tokens") is None:
        body[name] = 3
    return body


@pytest.mark.parametrize("route", GOOD)
@pytest.mark.parametrize("count", [30, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_bodies_are_answered_or_refused(live_server, wire, route, count):
    rng = random.Random(route)
    statuses = set()
    for _ in range(count):
        body = limited(route, damaged(rng, GOOD[route]))
        if rng.random() < 0.3:
            body["stream"] = True
        answer = wire.post(f"{live_server.base_url}{route}", content=json.dumps(body))
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"], body
    assert {200, 400} <= statuses
    assert wire.get(f"{live_server.base_url}/health").json()["status"] == "ok"


def asked_of(server, monkeypatch):
    """The settings of requests that reach the scheduler."""
    scheduler, seen = server.models.loaded()["tiny"].scheduler, []
    submit = scheduler.submit

    def spy(request, on_event):
        seen.append(request.params)
        return submit(request, on_event)

    monkeypatch.setattr(scheduler, "submit", spy)
    return seen


def test_an_answer_without_a_limit_is_not_cut(tiny_server, wire, monkeypatch):
    seen = asked_of(tiny_server.server, monkeypatch)
    monkeypatch.setattr(tiny_server.engine, "context", 300)  # of which none is a default
    quiet = {"stream": False}
    for path, body, limit in [
        ("/v1/chat/completions", {"messages": [HI]}, 300),
        ("/v1/chat/completions", {"messages": [HI], "max_tokens": 7}, 7),
        ("/v1/chat/completions", {"messages": [HI], "max_completion_tokens": 7}, 7),
        ("/v1/responses", {"input": "hi"}, 300),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 7}, 7),
        ("/api/chat", {"messages": [HI], **quiet}, 300),
        *(("/api/chat", {"messages": [HI], "options": {"num_predict": n}, **quiet}, 300) for n in (0, -1, -2)),
        ("/api/generate", {"prompt": "hi", **quiet}, 300),
        ("/api/generate", {"prompt": "hi", "raw": True, **quiet}, 1_000_000),
        ("/api/generate", {"prompt": "hi", "raw": True, "options": {"num_predict": 7}, **quiet}, 7),
        ("/v1/completions", {"prompt": "hi"}, 1024),
        ("/v1/messages", {"messages": [HI], "max_tokens": 7}, 7),
    ]:
        answer = wire.post(f"{tiny_server.base_url}{path}", json=body)
        assert answer.status_code == 200, answer.text
        assert seen.pop().max_tokens == limit, (path, body)
        assert not seen
    without_end = {"messages": [HI], "logit_bias": {"256": -100, "258": -100}}
    answer = wire.post(f"{tiny_server.base_url}/v1/chat/completions", json=without_end).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    said = wire.get(f"{tiny_server.base_url}/openapi.json").json()["components"]["schemas"]
    assert "1024 where it is not given" in said["CompletionRequest"]["properties"]["max_tokens"]["description"]
    assert "until the model ends it" in said["ResponsesRequest"]["properties"]["max_output_tokens"]["description"]


def test_a_seed_and_a_top_k_of_minus_one(tiny_server, wire, monkeypatch):
    seen = asked_of(tiny_server.server, monkeypatch)
    for path, body in [
        ("/v1/chat/completions", {"messages": [HI], "max_tokens": 1, "seed": -1, "top_k": -1, "n": 2}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 1, "seed": -1.0, "top_k": -1}),
        ("/api/chat", {"messages": [HI], "options": {"num_predict": 1, "seed": -5, "top_k": -7}, "stream": False}),
    ]:
        answer = wire.post(f"{tiny_server.base_url}{path}", json=body)
        assert answer.status_code == 200, answer.text
        assert {(p.seed, p.top_k) for p in seen} == {(None, 0)}
        seen.clear()
    for name in ("seed", "top_k"):
        answer = wire.post(f"{tiny_server.base_url}/v1/completions", json={"prompt": "hi", name: -2})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
