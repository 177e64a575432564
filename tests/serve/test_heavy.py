"""Bodies of megabytes that are wrong (S5): refused at once, with no memory taken, while others are answered; and large ones that
are right."""

import json
import threading
import time

import openai
import pytest

from gangpao.machine import rss_mb
from gangpao.serve.api import schema
from gangpao.serve.api.anthropic import MessagesRequest
from gangpao.serve.api.ollama import ChatRequest as OllamaRequest
from gangpao.serve.api.openai_chat import ChatRequest
from gangpao.serve.api.responses import ResponsesRequest
from gangpao.serve.http import json_bounds

HI = b'"messages":[{"role":"user","content":"hi"}]'


def many(item, count, n=0):
    return b"[" + (item + b",") * count + (item if n == 0 else b"{}") + b"]"


def members(count):
    return b",".join(b'"%d":1' % i for i in range(count))


def utf16(count):
    """An escaped quotation mark that a count of UTF-8 does not see, and many values."""
    return '{"x":"\\"","prompt":['.encode("utf-16") + "{},".encode("utf-16-le") * count


def body(before, items, after=b"}"):
    return before + items + after


def called(arguments):
    """A conversation with a call."""
    function = {"name": "f", "arguments": arguments}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "type": "function", "function": function}]}
    return [{"role": "user", "content": "a"}, call, {"role": "tool", "tool_call_id": "x", "content": "r"}]


def chat(messages, tools=None):
    return json.dumps({"messages": messages, "tools": tools, "max_tokens": 2}).encode()


BLOCKS = b'{"max_tokens":4,"messages":[{"role":"user","content":'
HEAVY = {
    "a prompt of many ids": ("/v1/completions", body(b'{"prompt":', many(b"1", 1_900_000))),
    "as many ids as may be read": ("/v1/completions", body(b'{"prompt":', many(b"1", 399_000))),
    "ids of which the last is wrong": ("/v1/completions", body(b'{"prompt":', many(b"1", 399_000, 1))),
    "lists of one id": ("/v1/embeddings", body(b'{"input":', many(b"[1]", 900_000))),
    "as many lists as may be read": ("/v1/embeddings", body(b'{"input":', many(b"[1]", 90_000))),
    "texts that are none": ("/v1/embeddings", body(b'{"input":', many(b"1.5", 390_000))),
    "stop strings": ("/v1/completions", body(b'{"prompt":"a","stop":', many(b'"x"', 1_900_000))),
    "fewer stop strings": ("/v1/completions", body(b'{"prompt":"a","stop":', many(b'"x"', 90_000))),
    "stop numbers": ("/v1/completions", body(b'{"prompt":"a","stop":', many(b"1", 390_000))),
    "bad blocks": ("/v1/messages", body(BLOCKS, many(b"{}", 900_000), b"}]}")),
    "fewer bad blocks": ("/v1/messages", body(BLOCKS, many(b"{}", 90_000), b"}]}")),
    "bad blocks in many turns": ("/v1/messages", body(b'{"max_tokens":4,"messages":', many(
        b'{"role":"user","content":[{},{},{},{},{},{}]}', 4_000))),
    "good blocks, a bad end": ("/v1/messages", body(b'{"max_tokens":4,"messages":', many(
        b'{"role":"user","content":[{"type":"text","text":"a"}]}', 4_000, 1))),
    "bad items": ("/v1/responses", body(b'{"input":', many(b'{"type":1}', 900_000))),
    "fewer bad items": ("/v1/responses", body(b'{"input":', many(b'{"type":1}', 30_000))),
    "metadata": ("/v1/responses", body(b'{"input":"a","metadata":{', members(900_000), b"}}")),
    "fewer metadata": ("/v1/responses", body(b'{"input":"a","metadata":{', members(90_000), b"}}")),
    "fields": ("/v1/chat/completions", body(b"{", members(900_000))),
    "fewer fields": ("/v1/chat/completions", body(b"{", members(90_000))),
    "bad turns": ("/api/chat", body(b'{"messages":', many(b"{}", 90_000))),
    "bad pictures": ("/api/generate", body(b'{"prompt":"a","images":', many(b"1", 390_000))),
    "tools": ("/v1/chat/completions", body(b"{%s," % HI + b'"tools":', many(b"1", 390_000))),
    "tokens": ("/detokenize", body(b'{"tokens":', many(b"1.5", 390_000))),
    "escapes": ("/v1/completions", body(b'{"prompt":"', b"\\\\" * 1_900_000, b'","stop":1}')),
    "more escapes": ("/v1/completions", body(b'{"prompt":"', b"\\n" * 5_000_000, b'"}')),
    "digits": ("/v1/completions", body(b'{"prompt":"a","temperature":', b"0." + b"1" * 8_000_000)),
    "UTF-16": ("/v1/completions", utf16(900_000)),
    "levels": ("/v1/completions", body(b'{"prompt":', b"[" * 129 + b"]" * 129)),
    "a description": ("/v1/chat/completions", chat([{"role": "user", "content": "a"}], [
        {"type": "function", "function": {"name": "f", "description": "word " * 800_000}}])),
    "an argument": ("/v1/chat/completions", chat(called("word " * 800_000))),
    "a call's values": ("/v1/chat/completions", chat(called("[" + "1," * 900_000 + "1]"))),
    "a call's levels": ("/v1/chat/completions", chat(called("[" * 129 + "]" * 129))),
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_bodies_are_refused_at_once(tiny_server, wire, name):
    route, raw = HEAVY[name]
    times = []
    before = rss_mb()
    for _ in range(3):
        began = time.process_time()  # of the server too; a busy machine does not stretch it
        answer = wire.post(tiny_server.base_url + route, content=raw)
        times.append(time.process_time() - began)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]
    assert min(times) < 1.5  # 0.1 s on a machine of one's own, and the time that the body takes on its way
    assert rss_mb() < before + 60


def test_others_are_answered_beside_heavy_bodies(tiny_server, wire):
    ended = threading.Event()

    def send():
        for route, raw in HEAVY.values():
            wire.post(tiny_server.base_url + route, content=raw)
        ended.set()

    thread = threading.Thread(target=send)
    thread.start()
    waits = []
    while not ended.is_set():
        began = time.perf_counter()
        assert wire.get(f"{tiny_server.base_url}/health").status_code == 200
        waits.append(time.perf_counter() - began)
    thread.join()
    assert max(waits) < 4  # 0.1 s on a machine of one's own, 4 to 20 s before there were bounds
    assert sum(waits) / len(waits) < 0.2


TURNS = [{"role": ("user", "assistant")[i % 2], "content": "Why? " * 20} for i in range(1999)]
BLOCK_TURNS = [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]
TOOL = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d"} for i in range(30)}}
LARGE = {
    "a prompt of ids": (schema.CompletionRequest, {"prompt": [151_000] * 32_768}),
    "ids with a point": (schema.CompletionRequest, {"prompt": [1.0] * 32_768}),
    "several prompts": (schema.CompletionRequest, {"prompt": [[151_000] * 8192] * 16}),
    "inputs": (schema.EmbeddingRequest, {"input": ["some text, and some more"] * 2048}),
    "inputs of ids": (schema.EmbeddingRequest, {"input": [[1000] * 146] * 2048}),
    "tokens": (schema.DetokenizeRequest, {"tokens": [1] * 200_000}),
    "a conversation": (ChatRequest, {"messages": TURNS, "logit_bias": {str(i): -1 for i in range(1024)}}),
    "a conversation in parts": (ChatRequest, {"messages": BLOCK_TURNS}),
    "a conversation of blocks": (MessagesRequest, {"max_tokens": 1, "messages": BLOCK_TURNS, "tools": [
        {"name": f"f{i}", "input_schema": TOOL} for i in range(128)]}),
    "items": (ResponsesRequest, {"input": TURNS}),
    "lines": (OllamaRequest, {"messages": TURNS}),
    "a table": (schema.CompletionRequest, {"prompt": '{"a": [1, 2, "x"]}, 1.5\n' * 100_000}),
    "a picture": (ChatRequest, {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A+/" * 5_000_000}}]}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_large_bodies_that_people_send_are_taken(name, ascii_only):
    kind, asked = LARGE[name]
    raw = json.dumps(asked, ensure_ascii=ascii_only).encode()
    json_bounds.check(raw, "the body")
    schema.parse(kind, json_bounds.loads(raw))


@pytest.mark.parametrize("number", ["1e400", "-1e999", "NaN", "Infinity", "1" * 400 + ".0"])
def test_numbers_that_are_none(tiny_server, wire, number):
    for route in ("/v1/responses", "/v1/chat/completions", "/v1/messages", "/api/chat"):
        answer = wire.post(tiny_server.base_url + route, content=b'{"metadata":{"x":%s}}' % number.encode())
        assert answer.status_code == 400
        assert "not JSON" in answer.text


def test_what_counts_as_a_value():
    json_bounds.check(rb'{"a\\": "[[[[{{{{\"", "b": [[], {}]}', "x")
    json_bounds.check(b"[" * json_bounds.MAX_DEPTH + b"]" * json_bounds.MAX_DEPTH, "x")
    with pytest.raises(ValueError, match=r"^x is nested more than 128"):
        json_bounds.check(b"[" * (json_bounds.MAX_DEPTH + 1), "x")
    with pytest.raises(ValueError, match=r"^x has more than 100000 objects"):
        json_bounds.check(rb'["\\", ' + b"[]," * (json_bounds.MAX_VALUES + 1), "x")
    assert json_bounds.loads(b'\xef\xbb\xbf["\\ud800", 1.5]') == ["\ud800", 1.5]


def test_levels_that_are_found_late_are_no_fault_of_ours(tiny_server, wire, monkeypatch):
    def deep(*_, **__):
        raise RecursionError

    monkeypatch.setattr("gangpao.serve.answers.tool_calls.encode", deep)
    answer = wire.post(f"{tiny_server.base_url}/v1/chat/completions", content=chat(called("{}")))
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "what was sent is nested too deeply")


def test_what_a_call_holds_is_bounded(tiny_server, wire):
    for arguments in ("[" * 129 + "]" * 129, json.loads("[" * 128 + "]" * 128)):
        answer = wire.post(f"{tiny_server.base_url}/v1/chat/completions", content=chat(called(arguments)))
        assert answer.status_code == 400
        assert "is nested more than 128 levels deep" in answer.json()["error"]["message"]


def test_functions_are_checked_before_anything_is_encoded(tiny_server, wire, monkeypatch):
    monkeypatch.setattr("gangpao.serve.answers.tool_calls.encode", lambda *_, **__: 1 / 0)
    bad = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"$ref": "https://a.example"}}}
    answer = wire.post(f"{tiny_server.base_url}/v1/chat/completions", content=chat(called("{}"), [bad]))
    assert answer.status_code == 400
    assert "leads elsewhere" in answer.text


def test_as_many_inputs_as_openai_takes(tiny_server, wire):
    with openai.OpenAI(base_url=f"{tiny_server.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        found = client.embeddings.create(model="tiny", input=["a", "b"] * 1024, encoding_format="float")
        few = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
        assert [one.index for one in found.data] == list(range(2048))
        assert [one.embedding for one in found.data[-2:]] == [one.embedding for one in few.data]
        assert found.usage.prompt_tokens == 1024 * few.usage.prompt_tokens
        with pytest.raises(openai.BadRequestError, match="2049 texts are more than 2048"):
            client.embeddings.create(model="tiny", input=["a"] * 2049)
    many = wire.post(f"{tiny_server.base_url}/api/embed", json={"input": ["a"] * 40}).json()
    assert many["embeddings"] == [few.data[0].embedding] * 40


def test_a_chat_without_functions_does_not_look_how_its_model_writes_calls(live_server, wire, monkeypatch):
    """That takes a tenth of a second, in which nobody else would be heard."""
    monkeypatch.setattr("gangpao.text.templates.chat.call_format_of", lambda *_: 1 / 0)
    plain = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    assert wire.post(f"{live_server.base_url}/v1/chat/completions", json=plain).status_code == 200
