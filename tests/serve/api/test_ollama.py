"""Ollama's API through Ollama's own client, over a real socket, with a real model."""

import json

import numpy as np
import ollama
import pytest

from gangpao.serve.api.ollama_models import SPEAKS
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings

ASK = [{"role": "user", "content": "Name three colours."}]
GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 10, "num_ctx": 4096}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
FORM = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def client(live_server):
    with ollama.Client(host=live_server.base_url, timeout=60, trust_env=False) as client:
        yield client


def ask(client, messages=ASK, **more):
    return client.chat(model="smollm2-135m:latest", messages=messages, **{"options": GREEDY, **more})


def test_chat_is_the_engines_own_answer(client, reference):
    answer = ask(client, keep_alive="5m")
    assert answer.message.content == reference.greedy(ASK, 10)
    assert (answer.done, answer.done_reason, answer.message.role) == (True, "length", "assistant")
    assert (answer.prompt_eval_count, answer.eval_count) == (len(reference.prompt(ASK)), 10)
    assert answer.total_duration > answer.eval_duration > 0
    assert answer.prompt_eval_duration > 0
    lines = list(ask(client, stream=True))
    assert "".join(line.message.content for line in lines) == answer.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].eval_count == 10
    everything = ask(client, options={**GREEDY, "num_predict": 30, "stop": [answer.message.content[8:12]], "seed": -1})
    assert everything.done_reason == "stop"


def test_generate_with_a_system_message_and_raw(client, reference):
    chat = [{"role": "system", "content": "Be terse."}, *ASK]
    said = client.generate(model="smollm2-135m", prompt=ASK[0]["content"], system="Be terse.", options=GREEDY)
    assert said.response == reference.greedy(chat, 10)
    text = reference.engine.template.render(chat)
    raw = client.generate(model="smollm2-135m", prompt=text, raw=True, options=GREEDY)
    assert raw.response == said.response
    lines = list(client.generate(model="smollm2-135m", prompt=text, raw=True, stream=True, options=GREEDY))
    assert "".join(line.response for line in lines) == said.response
    assert (lines[-1].done_reason, lines[-1].eval_count) == ("length", 10)


def test_an_empty_request_loads_the_model(client):
    assert client.chat(model="smollm2-135m").done_reason == "load"
    assert client.generate(model="smollm2-135m").done_reason == "load"


def test_forms(client):
    options = {"num_predict": 60, "temperature": 1.5}
    assert json.loads(ask(client, format=FORM, options=options).message.content)["a"] in ("x", "y")
    said = client.generate(model="smollm2-135m", prompt="JSON!", format=FORM, options=options)
    assert json.loads(said.response)["a"] in ("x", "y")
    assert ask(client, format="json", options={"num_predict": 3}).message.content.startswith("{")
    with pytest.raises(ollama.ResponseError, match="leads elsewhere"):
        ask(client, format={"$ref": "http://127.0.0.1/x"})


def test_earlier_calls_are_read_and_a_call_comes_whole(client, wire, live_server):
    talk = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": "12 °C"},
    ]  # fmt: skip
    assert ask(client, talk, tools=[WEATHER]).prompt_eval_count > ask(client, tools=[WEATHER]).prompt_eval_count + 20

    # The model is a small one that seldom calls by itself; a writer is given what a better one says.
    from gangpao.serve.answers.events import CallArguments, CallBegan, Ended, Finished, Started, Text
    from gangpao.serve.api.ollama import _Writer

    usage = {"completion_tokens": 3, "prompt_tokens": 2}
    speed = {"decode_tps": 2.0, "ttft_s": 1.0, "queue_s": 0.25}
    said = [
        Started("m"),
        Text("Hm."),
        CallBegan("1", "a"),
        CallArguments('{"x"'),
        CallArguments(": 1}"),
        CallBegan("2", "b", 1),
        CallArguments("{}", 1),
    ]
    writer = _Writer("message")
    lines = [line for event in [*said, Ended("tool_calls"), Finished(usage, speed)] for line in writer.write(event)]
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "Hm."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "a", "arguments": {"x": 1}}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "b", "arguments": {}}}]},
        {"role": "assistant", "content": ""},
    ]
    last = lines[-1]
    assert (last["done_reason"], last["prompt_eval_duration"], last["eval_duration"]) == ("stop", 750_000_000, 10**9)
    writer = _Writer("message")
    cut = [line for event in [*said[:4], Ended("length"), Finished(usage, speed)] for line in writer.write(event)]
    assert [line["message"].get("tool_calls") for line in cut] == [None, None]


def test_embeddings(client):
    both = client.embed(model="smollm2-135m", input=["a cat", "a dog"])
    assert len(both.embeddings) == 2
    assert np.allclose([np.linalg.norm(v) for v in both.embeddings], 1, atol=1e-4)
    assert both.prompt_eval_count > 0
    assert client.embeddings(model="smollm2-135m", prompt="a cat").embedding == both.embeddings[0]


def test_models(client, wire, live_server):
    (one,) = client.list().models
    assert (one.model, one.size) == ("smollm2-135m", live_server.server.models.files["smollm2-135m"].stat().st_size)
    assert len(one.digest) == 64
    shown = client.show("smollm2-135m")
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.details.parameter_size == "134.5M"
    assert shown.details.quantization_level.startswith(("Q", "F"))
    assert "tools" in shown.capabilities
    assert shown.template
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("smollm2-135m", 2048)
    version = wire.get(f"{live_server.base_url}/api/version").json()["version"]
    assert version == SPEAKS


def test_a_model_whose_file_is_gone_does_not_hide_the_others(tiny_path, tmp_path):
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(tiny_path.read_bytes())
    with running(Server(Settings({"tiny": tiny_path, "gone": gone}, port=0, threads=1))) as url:
        gone.unlink()
        with ollama.Client(url, trust_env=False) as client:
            sizes = {one.model: one.size for one in client.list().models}
        assert sizes == {"tiny": tiny_path.stat().st_size, "gone": 0}


def test_errors_have_ollamas_form(client, wire, live_server):
    with pytest.raises(ollama.ResponseError, match="there is no model 'nope'") as error:
        client.chat(model="nope", messages=ASK)
    assert error.value.status_code == 404
    cases = [
        ("chat", {"messages": [{"content": "x"}]}),
        ("chat", {"messages": ASK, "options": {"temperature": 99}}),
        ("chat", {"messages": ASK, "options": {"num_predict": 10**7}}),
        ("chat", {"messages": ASK, "options": {"repeat_penalty": 0}}),
        ("chat", {"messages": ASK, "options": 3}),
        ("chat", {"messages": ASK, "format": "xml"}),
        ("chat", {"messages": [{"role": "user", "content": "see", "images": ["AAAA"]}]}),
        ("generate", {"prompt": "a", "raw": True, "format": "json"}),
        ("generate", {"prompt": 3}),
        ("embed", {"input": 3}),
        ("embed", {"input": [""]}),
        ("show", {"model": 3}),
    ]
    for path, body in cases:
        answer = wire.post(f"{live_server.base_url}/api/{path}", json=body)
        assert answer.status_code == 400, (path, body, answer.text)
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"], (path, body)
        for name in body.get("options", {}) if isinstance(body.get("options"), dict) else ():
            assert answer.json()["error"].startswith(f"options.{name}:")
    raw = {"prompt": "a", "raw": True, "options": {"num_predict": 10**7}, "stream": False}
    answer = wire.post(f"{live_server.base_url}/api/generate", json=raw)
    assert answer.json()["error"].startswith("options.num_predict: ")


def test_values_that_switch_something_off(client, wire, tiny_server):
    off = {"num_predict": 2, "top_k": -1, "seed": -1}
    for options in (off, off | {"top_k": 0}):
        assert ask(client, options=options).eval_count <= 2
    nothing = {"model": "tiny", "embeddings": []}
    for body in ({"input": []}, {"input": ""}, {}):
        assert wire.post(f"{tiny_server.base_url}/api/embed", json=body).json() == nothing
    assert wire.post(f"{tiny_server.base_url}/api/embeddings", json={"prompt": ""}).json() == {"embedding": []}
    assert client.embed(model="smollm2-135m", input=[]).embeddings == []
    assert wire.post(f"{tiny_server.base_url}/api/embed", json={"input": [], "model": "no"}).status_code == 404
