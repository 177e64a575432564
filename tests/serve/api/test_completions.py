"""/v1/completions for those who compare: log-probabilities of prompts and answers, limits of a local server, holes in texts."""

import json
import math

import numpy as np
import pytest

from gangpao.engine.sample import logprobs_of
from gangpao.text.fill import FillMarks, fill_prompt

CONTEXTS = ["The capital of France is", "Question: what is 2 + 2?\nAnswer:", "北京是中国的首都，"]
CONTINUATIONS = [" Paris", " a banana, of course.", " 4", "上海"]


def ask(server, wire, path="/v1/completions", status=200, **body):
    answer = wire.post(server.base_url + path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def one_by_one(engine, ids) -> list:
    logits = engine.model.forward(ids, engine.model.new_cache(engine.context), all_logits=True)
    return [logprobs_of(row, i, 1) for row, i in zip(logits, ids[1:], strict=False)]


def test_the_sums_of_lm_eval_are_the_models_own(live_server, wire, reference):
    """As its local-completions asks: ids of context and continuation, echo, one token that is thrown away."""
    encode = reference.engine.tokenizer.encode
    pairs = [(encode(a), encode(b, start=False)) for a in CONTEXTS for b in CONTINUATIONS]
    body = {
        "prompt": [a + b for a, b in pairs],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    choices = ask(live_server, wire, **body)["choices"]
    assert [c["index"] for c in choices] == list(range(len(pairs)))
    for (context, more), choice in zip(pairs, choices, strict=True):
        found = choice["logprobs"]
        values, tops = found["token_logprobs"][len(context) : -1], found["top_logprobs"][len(context) : -1]
        expected = one_by_one(reference.engine, context + more)[len(context) - 1 :]
        assert sum(values) == pytest.approx(sum(e.logprob for e in expected), abs=1e-5)
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        assert greedy == all(e.rank == 1 for e in expected)
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None


@pytest.mark.slow
def test_the_sums_are_those_of_transformers(model_path, live_server, wire, reference):
    """The Hugging Face path on the same file, weights made floats again; what differs is our 8-bit activations."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = model_path("smollm2-135m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    encode = reference.engine.tokenizer.encode
    for context in CONTEXTS[:2]:
        for more in CONTINUATIONS[:3]:
            ids, size = encode(context) + encode(more, start=False), len(encode(context))
            with torch.no_grad():
                rows = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1)
            expected = sum(float(rows[i - 1, ids[i]]) for i in range(size, len(ids)))
            found = ask(live_server, wire, prompt=ids, max_tokens=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
            assert sum(found["token_logprobs"][size:]) == pytest.approx(expected, abs=0.35, rel=0.02)


def test_the_same_prompt_in_all_forms(live_server, wire, reference):
    text = CONTEXTS[1]
    ids = reference.engine.tokenizer.encode(text)
    expected = [round(e.logprob, 6) for e in one_by_one(reference.engine, ids)]
    whole = ask(live_server, wire, prompt=text, max_tokens=0, echo=True, logprobs=0)
    choice = whole["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert choice["logprobs"]["token_logprobs"] == [None, *expected]
    assert "".join(choice["logprobs"]["tokens"]) == text
    assert whole["usage"]["completion_tokens"] == 0
    assert whole["usage"]["prompt_tokens"] == len(ids)
    vllm = ask(live_server, wire, prompt=text, max_tokens=2, temperature=0, prompt_logprobs=2)["choices"][0]
    assert vllm["logprobs"] is None
    assert vllm["text"]
    first, *rest = vllm["prompt_logprobs"]
    assert first is None
    for i, value, entry in zip(ids[1:], expected, rest, strict=True):
        assert entry[str(i)]["logprob"] == value
        assert len(entry) in (2, 3)
        assert {e["rank"] for e in entry.values()} >= {1, 2}
    plain = ask(live_server, wire, prompt=text, max_tokens=0)
    assert plain["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}


@pytest.mark.parametrize("more", [{"echo": True, "logprobs": 2}, {"prompt_logprobs": 1, "logprobs": 2}, {"echo": True}])
def test_a_stream_is_the_whole_in_pieces(live_server, wire, more):
    body = {"prompt": ["One, two,", "北京是"], "max_tokens": 5, "temperature": 0, **more}
    whole = ask(live_server, wire, **body)["choices"]
    answer = wire.post(live_server.base_url + "/v1/completions", json={**body, "stream": True})
    joined: list = [{"text": "", "lists": {}, "prompt": None} for _ in whole]
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            one = joined[choice["index"]]
            one["text"] += choice["text"]
            one["prompt"] = choice.get("prompt_logprobs", one["prompt"])
            for name, values in (choice["logprobs"] or {}).items():
                one["lists"].setdefault(name, []).extend(values)
    for choice, one in zip(whole, joined, strict=True):
        assert one["text"] == choice["text"]
        assert one["lists"] == (choice["logprobs"] or {})
        assert one["prompt"] == choice.get("prompt_logprobs")


def test_parts_of_characters_have_names_of_their_own(live_server, wire):
    found = ask(
        live_server, wire, prompt=CONTEXTS[2], max_tokens=24, temperature=1.5, seed=3, logprobs=5, echo=True
    )["choices"][0]  # fmt: skip
    text, logprobs = found["text"], found["logprobs"]
    entries = list(
        zip(*(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True)
    )
    assert any(token.startswith("bytes:\\x") for token, *_ in entries)
    for i, (token, value, top, at) in enumerate(entries):
        assert at <= len(text)
        if i:
            assert at >= entries[i - 1][3]
            assert len(top) in (5, 6)
            assert top[token] == value
        if not token.startswith("bytes:"):
            assert text[at : at + len(token)] == token
    assert any(len(top) == 6 for _, _, top, _ in entries[1:])  # a chosen one that is not among the best


def test_tokens_that_a_stop_string_cut_off_are_not_listed(live_server, wire):
    body = {"prompt": "One, two, three, four,", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    full = ask(live_server, wire, **body)["choices"][0]
    stop = full["text"][6:10]
    cut = ask(live_server, wire, stop=[stop], **body)["choices"][0]
    assert cut["text"] == full["text"][: full["text"].index(stop)]
    count = len(cut["logprobs"]["tokens"])
    assert cut["logprobs"] == {name: values[:count] for name, values in full["logprobs"].items()}
    assert all(at < len(cut["text"]) for at in cut["logprobs"]["text_offset"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2), ("prompt_logprobs", True), ("prompt_logprobs", 21), ("logprobs", True), ("suffix", "b"),
        ("max_tokens", -2), ("use_beam_search", True), ("bad_words", ["a"]), ("truncate_prompt_tokens", 5), ("echo", 1),
        ("structured_outputs", 3),
    ],
)  # fmt: skip
def test_what_would_not_be_honoured_is_refused_by_name(live_server, wire, field, value):
    error = ask(live_server, wire, status=400, **{"prompt": "hi", "max_tokens": 1, field: value})["error"]
    assert field in error["message"]
    assert error["param"] == field


def test_a_completion_keeps_to_a_form(live_server, wire):
    found = ask(live_server, wire, prompt="Colour: ", max_tokens=8, guided_choice=["red", "green"], n=2, seed=1)
    assert all(c["text"] in ("red", "green") for c in found["choices"])


def test_the_limits_are_those_of_a_local_server(tiny_server, wire):
    places = tiny_server.server.settings.places
    prompts = [f"prompt {i}" for i in range(places * 3)]
    found = ask(tiny_server, wire, prompt=prompts, max_tokens=2, temperature=0)
    alone = [ask(tiny_server, wire, prompt=p, max_tokens=2, temperature=0)["choices"][0]["text"] for p in prompts[:3]]
    assert [c["text"] for c in found["choices"]][:3] == alone
    assert len(found["choices"]) == places * 3
    assert found["usage"]["prompt_tokens"] == sum(len(p) for p in prompts)
    stops = [f"<stop {i}>" for i in range(200)]
    assert ask(tiny_server, wire, prompt="a", max_tokens=3, stop=stops)["choices"]
    error = ask(tiny_server, wire, status=400, prompt="a", max_tokens=3, stop=stops * 2)["error"]
    assert error["param"] == "stop"
    assert "--max-stop" in error["message"]
    error = ask(tiny_server, wire, status=400, prompt=["a"] * 257)["error"]
    assert error["param"] == "prompt"
    assert "--max-prompts" in error["message"]
    context = tiny_server.engine.context
    endless = {"logit_bias": {"256": -100, "258": -100}}
    long = ask(tiny_server, wire, prompt="a", max_tokens=-1, **endless)
    assert long["usage"]["completion_tokens"] == context
    assert "--context" in ask(tiny_server, wire, status=400, prompt="a" * context)["error"]["message"]


def test_a_long_text_for_an_embedding_is_cut_where_that_is_asked_for(tiny_server, wire):
    context = tiny_server.engine.context
    long = "".join(chr(97 + i % 26) for i in range(context * 3))

    def vector(text, path="/v1/embeddings", **more):
        found = ask(tiny_server, wire, path, input=text, **more)
        return found["embeddings"][0] if "embeddings" in found else found["data"][0]["embedding"]

    begin, end = vector(long[: context - 1]), vector(long[-(context - 1) :])
    ask(tiny_server, wire, "/v1/embeddings", status=400, input=long)
    ask(tiny_server, wire, "/api/embed", status=400, input=long, truncate=False)
    np.testing.assert_array_equal(vector(long, truncate=True), begin)
    np.testing.assert_array_equal(vector(long, "/api/embed"), begin)
    np.testing.assert_array_equal(vector(long, truncate_prompt_tokens=-1), end)
    np.testing.assert_array_equal(vector(long, truncate_prompt_tokens=5), vector(long[-5:]))
    assert math.isclose(sum(x * x for x in begin), 1, rel_tol=1e-5)
    ask(tiny_server, wire, "/v1/embeddings", status=400, input=long, truncate_prompt_tokens=0)


def test_holes_are_filled_in_all_forms(tiny_server, wire, monkeypatch):
    """A tiny model that is said to have marks: what is asked is the prompt with a hole, whoever asks; marks end the answer."""
    engine = tiny_server.engine
    marks = FillMarks(256, 257, 65, ends=frozenset({66}))
    monkeypatch.setattr(engine, "fill", marks)
    ids = fill_prompt(engine.tokenizer, marks, "ab", "cd")
    base = {"temperature": 0, "max_tokens": 6}
    expected = ask(tiny_server, wire, prompt=ids, stop_token_ids=[66], **base)
    text, counts = expected["choices"][0]["text"], expected["usage"]
    found = ask(tiny_server, wire, prompt="ab", suffix="cd", **base)
    assert (found["choices"][0]["text"], found["usage"]["prompt_tokens"]) == (text, counts["prompt_tokens"])
    options = {"temperature": 0, "num_predict": 6}
    ollama = ask(tiny_server, wire, "/api/generate", prompt="ab", suffix="cd", stream=False, options=options)
    assert (ollama["response"], ollama["prompt_eval_count"]) == (text, counts["prompt_tokens"])
    infill = {"input_prefix": "a", "prompt": "b", "input_suffix": "cd", "n_predict": 6, "temperature": 0}
    whole = ask(tiny_server, wire, "/infill", **infill)
    assert (whole["content"], whole["stop"], whole["tokens_evaluated"]) == (text, True, counts["prompt_tokens"])
    lines = wire.post(tiny_server.base_url + "/infill", json={**infill, "stream": True}).text.splitlines()
    pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(p["content"] for p in pieces) == text
    assert [p["stop"] for p in pieces] == [False] * (len(pieces) - 1) + [True]
    for more in ({"echo": True}, {"prompt": [1, 2]}):
        ask(tiny_server, wire, status=400, **{"prompt": "ab", "suffix": "cd", **more})
    monkeypatch.setattr(engine, "fill", None)
    error = ask(tiny_server, wire, "/infill", status=400, **infill)["error"]
    assert "no marks for a hole" in error["message"]
