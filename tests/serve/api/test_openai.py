"""The routes of OpenAI's API through OpenAI's own client, over a real socket, with a real model."""

import asyncio
import base64
import json

import numpy as np
import openai
import pytest

from gangpao.engine.sample import SamplingParams

ASK = [{"role": "user", "content": "Name three colours."}]
OTHER = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is snow?"}]
GREEDY = {"temperature": 0, "extra_body": {"repetition_penalty": 1}}


@pytest.fixture(scope="module")
def client(live_server):
    with openai.OpenAI(base_url=f"{live_server.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, messages=ASK, **more):
    return client.chat.completions.create(model="smollm2-135m", messages=messages, **more)


def test_greedy_chat_is_the_engines_own(client, reference):
    answer = ask(client, max_tokens=16, **GREEDY)
    choice = answer.choices[0]
    assert choice.message.content == reference.greedy(ASK, 16)
    assert (choice.finish_reason, choice.message.role, answer.object) == ("length", "assistant", "chat.completion")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(reference.prompt(ASK)), 16)
    assert usage.total_tokens == usage.prompt_tokens + 16
    again = ask(client, max_tokens=16, **GREEDY)
    assert again.choices[0].message.content == choice.message.content
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    timings = again.timings
    assert timings["yuan"] > 0
    assert timings["decode_tps"] > 0
    assert timings["ttft_s"] >= timings["queue_s"] >= 0


def test_a_seed_gives_the_engines_text_and_defaults_are_its_own(client, reference):
    answer = ask(client, OTHER, seed=7, max_tokens=12)
    assert answer.choices[0].message.content == reference.text(OTHER, SamplingParams(seed=7, max_tokens=12))
    assert answer.timings["seed"] == 7
    assert ask(client, OTHER, max_tokens=2).timings["seed"] != ask(client, OTHER, max_tokens=2).timings["seed"]


def test_a_stream_says_the_same_and_ends_with_the_counts(client, reference):
    chunks = list(ask(client, max_tokens=12, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    *parts, counts = chunks
    assert "".join(c.choices[0].delta.content or "" for c in parts) == reference.greedy(ASK, 12)
    assert [c.choices[0].finish_reason for c in parts[-2:]] == [None, "length"]
    assert counts.choices == []
    assert counts.usage.completion_tokens == 12
    assert all(c.usage is None for c in parts)
    assert len({c.id for c in chunks}) == 1
    assert counts.timings["yuan"] > 0


def test_the_stream_on_the_wire(live_server, wire):
    body = {"messages": ASK, "max_tokens": 3, "stream": True}
    response = wire.post(f"{live_server.base_url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert all(c["object"] == "chat.completion.chunk" and "usage" not in c for c in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_n_answers_take_seeds_that_follow_each_other(client, reference):
    answer = ask(client, n=3, seed=20, max_tokens=8)
    texts = [c.message.content for c in answer.choices]
    assert texts == [reference.text(ASK, SamplingParams(seed=20 + i, max_tokens=8)) for i in range(3)]
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(reference.prompt(ASK))
    parts = {0: "", 1: "", 2: ""}
    for chunk in ask(client, n=3, seed=20, max_tokens=8, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(parts.values()) == texts


def test_stop_and_bias_and_penalties(client, reference):
    whole = reference.greedy(ASK, 16)
    word = whole.split()[2]
    answer = ask(client, max_tokens=16, stop=[word, "never there"], **GREEDY).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(word)], "stop")
    assert ask(client, max_tokens=16, stop=word, **GREEDY).choices[0].message.content == answer.message.content
    token = reference.engine.tokenizer.encode(" snow")[0]
    biased = ask(client, OTHER, max_tokens=3, temperature=0, logit_bias={str(token): 100}).choices[0].message.content
    assert biased.count("snow") == 3
    params = SamplingParams(seed=3, max_tokens=16, presence_penalty=1.5, frequency_penalty=0.5, top_p=0.9)
    same = ask(client, seed=3, max_completion_tokens=16, presence_penalty=1.5, frequency_penalty=0.5, top_p=0.9)
    assert same.choices[0].message.content == reference.text(ASK, params)


def test_logprobs(client, live_server):
    choice = ask(client, max_tokens=5, logprobs=True, top_logprobs=3, **GREEDY).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == 5
    assert b"".join(bytes(e.bytes) for e in entries).decode() == choice.message.content
    for entry in entries:
        values = [t.logprob for t in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
        assert entry.logprob == values[0] <= 0
        assert entry.token == entry.top_logprobs[0].token
    streamed = ask(client, max_tokens=5, logprobs=True, top_logprobs=3, stream=True, **GREEDY)
    parts = [e for c in streamed if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [(e.token, e.logprob) for e in parts] == [(e.token, e.logprob) for e in entries]


def test_completions_go_on_from_the_text(client, reference):
    engine = reference.engine
    prompts = ["The capital of France is", "One, two, three,"]
    tokens = [engine.tokenizer.encode(p, add_bos=engine.tokenizer.adds_bos) for p in prompts]
    expected = []
    for ids in tokens:
        run = engine.generate(ids, SamplingParams(temperature=0, repetition_penalty=1, max_tokens=6), continues=True)
        expected.append("".join(p.text for p in run))
    more = {"model": "smollm2-135m", "max_tokens": 6, **GREEDY}
    assert [c.text for c in client.completions.create(prompt=prompts, **more).choices] == expected
    assert [c.text for c in client.completions.create(prompt=tokens, **more).choices] == expected
    assert client.completions.create(prompt=tokens[0], **more).choices[0].text == expected[0]
    echoed = client.completions.create(prompt=prompts[0], echo=True, logprobs=2, **more).choices[0]
    assert echoed.text == prompts[0] + expected[0]
    assert "".join(echoed.logprobs.tokens) == echoed.text
    assert echoed.logprobs.text_offset[len(tokens[0])] == len(prompts[0])
    assert all(len(top) in (2, 3) for top in echoed.logprobs.top_logprobs[1:])
    chunks = client.completions.create(prompt=prompts, stream=True, n=1, **more)
    parts = ["", ""]
    for chunk in chunks:
        parts[chunk.choices[0].index] += chunk.choices[0].text
    assert parts == expected
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(prompt="a", suffix="b", model="smollm2-135m")


def test_embeddings(client, reference):
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by two percent."]
    answer = client.embeddings.create(model="smollm2-135m", input=texts)  # this client asks for base64
    vectors = np.array([d.embedding for d in answer.data])
    assert vectors.shape == (3, reference.engine.model.config.hidden_size)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    plain = client.embeddings.create(model="smollm2-135m", input=texts[0], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, vectors[0], atol=1e-6)
    ids = reference.engine.tokenizer.encode(texts[0], add_bos=reference.engine.tokenizer.adds_bos)
    assert answer.usage.prompt_tokens >= len(ids)
    by_ids = client.embeddings.create(model="smollm2-135m", input=ids, encoding_format="base64")
    data = by_ids.data[0].embedding
    same = np.frombuffer(base64.b64decode(data), "<f4") if isinstance(data, str) else np.array(data)
    assert np.allclose(same, vectors[0], atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="smollm2-135m", input="a", dimensions=8)


def test_models_tokens_and_health(client, live_server, reference, wire):
    assert [m.id for m in client.models.list()] == ["smollm2-135m"]
    assert client.models.retrieve("smollm2-135m").meta["context"] == 2048
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    url = live_server.base_url
    made = wire.post(f"{url}/tokenize", json={"prompt": "snow <|im_end|>", "with_pieces": True}).json()
    assert made["tokens"] == reference.engine.tokenizer.encode("snow <|im_end|>", parse_special=True)
    assert "".join(made["pieces"]) == "snow <|im_end|>"
    assert wire.post(f"{url}/tokenize", json={"messages": ASK}).json()["tokens"] == reference.prompt(ASK)
    assert wire.post(f"{url}/detokenize", json={"tokens": made["tokens"]}).json()["content"] == "snow <|im_end|>"
    health = wire.get(f"{url}/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    text = wire.get(f"{url}/metrics").text
    assert 'vllm:num_requests_running{model_name="smollm2-135m",engine="0"} 0' in text
    assert "vllm:time_to_first_token_seconds_count" in text


@pytest.mark.parametrize(
    ("field", "value", "blamed"),
    [
        ("temperature", -1, "temperature"), ("temperature", "hot", "temperature"), ("top_p", 1.5, "top_p"), ("n", 0, "n"),
        ("n", 1000, "n"), ("max_tokens", 0, "max_tokens"), ("max_tokens", 2.5, "max_tokens"), ("stop", ["x"] * 999, "stop"),
        ("stop", ["x" * 5000], "stop"), ("logit_bias", {"x": 1}, "logit_bias"), ("logit_bias", {"1": 101}, "logit_bias"),
        ("logit_bias", {"99999999": 1}, "logit_bias"), ("top_logprobs", 3, "top_logprobs"), ("seed", -2, "seed"),
        ("messages", [], "messages"), ("messages", [{"content": "x"}], "messages"),
        ("messages", [{"role": "user"}], "messages"), ("messages", "hello", "messages"), ("messages", None, "messages"),
        ("stream_options", 3, "stream_options"), ("model", 5, "model"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(live_server, wire, field, value, blamed):
    body = {"messages": ASK, "max_tokens": 1, field: value}
    for stream in (False, True):
        response = wire.post(f"{live_server.base_url}/v1/chat/completions", json={**body, "stream": stream})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert blamed in (error["param"] or "") or blamed in error["message"]


def test_fields_without_effect_are_accepted(client, live_server, wire):
    answer = ask(
        client, max_tokens=1, user="me", store=True, metadata={"a": "b"}, service_tier="auto", reasoning_effort="low",
        parallel_tool_calls=False, extra_body={"surprise": [1, 2], "top_k": 5, "min_p": 0.1, "seed": None},
    )  # fmt: skip
    assert answer.choices[0].message.content
    developer = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "terse."}]}
    ]
    made = wire.post(
        f"{live_server.base_url}/v1/chat/completions", json={"messages": [*developer, *ASK], "max_tokens": 1.0}
    )
    assert made.status_code == 200


def test_errors_have_the_classes_of_the_client(client, live_server, wire):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "long " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=ASK)
    pixel = base64.b64encode(PIXEL).decode()
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}}]
    with pytest.raises(openai.BadRequestError, match="does not see"):
        ask(client, [{"role": "user", "content": parts}])
    url = f"{live_server.base_url}/v1/chat/completions"
    for raw in (b"{", b"[]", b'{"messages": NaN}', b"\xff\xfe", b"[" * 100_000, b""):
        response = wire.post(url, content=raw)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert wire.get(url).status_code == 405
    assert wire.get(f"{live_server.base_url}/nope").json()["error"]["code"] == "not_found"


def test_half_a_surrogate_pair_comes_back_as_it_came(live_server, wire):
    raw = b'{"prompt": "a\\ud800b", "max_tokens": 1, "echo": true}'
    response = wire.post(f"{live_server.base_url}/v1/completions", content=raw)
    assert response.status_code == 200
    assert response.json()["choices"][0]["text"].startswith("a\ud800b")


def test_many_at_once_say_what_each_would_alone(live_server, reference):
    questions = [[{"role": "user", "content": f"Tell me about the number {i}."}] for i in range(6)]

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{live_server.base_url}/v1", api_key="none", timeout=60) as client:
            made = await asyncio.gather(*(ask(client, q, max_tokens=10, **GREEDY) for q in questions))
            stream = await ask(client, questions[0], max_tokens=10, stream=True, **GREEDY)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return [m.choices[0].message.content for m in made], text

    texts, streamed = asyncio.run(all_of_them())
    assert texts == [reference.greedy(q, 10) for q in questions]
    assert streamed == texts[0]


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
