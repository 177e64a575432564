"""What restricts an answer is kept to, or refused by its name, in every API that takes it; 0, {} and [] are values, too."""

import json
import re

import pytest

from gangpao.engine.sample import MAX_STOP_CHARS
from gangpao.text.fill import FillMarks

HI = {"role": "user", "content": "hi"}
BIAS = {"logit_bias": {"258": 100}, "temperature": 0}  # the model's end, at once
INFILL = {"input_prefix": "a", "input_suffix": "cd"}
CHATS = [
    ("/v1/chat/completions", {"messages": [HI], "max_tokens": 2}),
    ("/v1/messages", {"messages": [HI], "max_tokens": 2}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
]
OLLAMA = [
    ("/api/chat", {"messages": [HI]}), ("/api/generate", {"prompt": "hi"}), ("/api/generate", {"prompt": "hi", "raw": True}),
]  # fmt: skip


@pytest.fixture
def post(tiny_server, wire):
    """Ask; the status and the body."""

    def send(path, body):
        more = {"stream": False} if path.startswith("/api") else {}
        answer = wire.post(tiny_server.base_url + path, json={**more, **body})
        return answer.status_code, answer.json()

    return send


@pytest.fixture
def holes(tiny_server, monkeypatch):
    """The tiny model, said to have marks for a hole."""
    monkeypatch.setattr(tiny_server.engine, "fill", FillMarks(256, 257, 65, ends=frozenset({66})))


@pytest.fixture
def asked(tiny_server, monkeypatch):
    """The engine's settings of what is submitted."""
    scheduler, seen = tiny_server.server.models.loaded()["tiny"].scheduler, []
    submit = scheduler.submit
    monkeypatch.setattr(scheduler, "submit", lambda r, e: seen.append(r.params) or submit(r, e))
    return seen


def said(answer):
    """The text of an answer of Ollama's."""
    return answer["message"]["content"] if "message" in answer else answer["response"]


def error(answer):
    """What was wrong."""
    found = answer["error"]
    return found if isinstance(found, str) else found["message"]


def test_a_hole_is_filled_within_the_constraints(post, holes):
    status, answer = post("/infill", {**INFILL, "n_predict": 9, "guided_choice": ["yes", "no"]})
    assert (status, answer["content"] in ("yes", "no")) == (200, True)
    assert post("/infill", {**INFILL, **BIAS, "n_predict": 5, "min_tokens": 4})[1]["tokens_predicted"] == 4
    assert post("/infill", {**INFILL, "prompt": None, "n": 1, "echo": False, "n_probs": 0, "n_predict": 1})[0] == 200


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"echo": True}, "echo"), ({"n": 2}, "n"), ({"logprobs": 1}, "logprobs"), ({"logprobs": 0}, "logprobs"),
        ({"logprobs": True}, "logprobs"), ({"n_probs": 3}, "n_probs"), ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"bad_words": ["a"]}, "bad_words"), ({"response_format": {}}, "response_format"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ],
)  # fmt: skip
def test_what_a_hole_cannot_have_is_refused(post, holes, more, field):
    status, answer = post("/infill", {**INFILL, "n_predict": 2, **more})
    assert (status, answer["error"]["param"]) == (400, field), answer
    assert error(answer).startswith(f"{field}: ")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("path", "body"), OLLAMA)
def test_ollamas_api_keeps_to_constraints(post, path, body, inside):
    def ask(limit, **more):
        options = {"num_predict": limit, **(more if inside else {})}
        status, answer = post(path, {**body, "options": options, **({} if inside else more)})
        assert status == 200, (path, more, answer)
        return answer

    for more in (
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
        {"grammar": 'root ::= "yes" | "no"'},
        {"guided_grammar": 'start: "yes" | "no"'},
        {"structured_outputs": {"choice": ["yes", "no"]}},
    ):
        assert said(ask(9, **more)) in ("yes", "no"), more
    for name in ("guided_json", "json_schema"):
        assert json.loads(said(ask(40, **{name: {"enum": ["a", "b"]}}))) in ("a", "b")
    assert ask(5, min_tokens=5)["eval_count"] == 5
    assert ask(9, ignore_eos=True)["done_reason"] == "length"
    everything = list(range(256))
    assert ask(9, stop_token_ids=everything)["eval_count"] <= 1
    nothing = {"guided_json": None, "echo": False, "ignore_eos": False, "min_tokens": 0, "bad_words": [], "best_of": 1}
    ask(2, **nothing, top_logprobs=0, logprobs=False)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("path", "body"), OLLAMA)
@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs"), ({"prompt_logprobs": 0}, "prompt_logprobs"), ({"echo": True}, "echo"),
        ({"bad_words": ["a"]}, "bad_words"), ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"logprobs": True}, "logprobs"), ({"top_logprobs": 2}, "top_logprobs"), ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": "1"}, "stop_token_ids"), ({"guided_choice": "yes"}, "guided_choice"),
        ({"structured_outputs": {"zzz": 1}}, "structured_outputs.zzz"), ({"ignore_eos": "yes"}, "ignore_eos"),
    ],
)  # fmt: skip
def test_ollamas_api_refuses_the_others(post, path, body, more, field, inside):
    status, answer = post(
        path, {**body, "options": {"num_predict": 2, **(more if inside else {})}, **({} if inside else more)}
    )
    assert status == 400, answer
    assert error(answer).startswith(f"{field}: "), answer


def test_one_form_in_ollamas_api(post):
    both = {"messages": [HI], "min_tokens": 1, "options": {"num_predict": 2, "min_tokens": 2}}
    assert error(post("/api/chat", both)[1]).startswith("min_tokens: it is there twice")
    status, answer = post("/api/chat", {"messages": [HI], "format": "json", "guided_choice": ["a"]})
    assert (status, error(answer)) == (400, "guided_choice: an answer has one form only, and format asks for one, too")
    assert error(post("/api/chat", {"messages": [HI], "format": {"not": {}}})[1]).startswith("format: ")


@pytest.mark.parametrize(("path", "body"), CHATS)
def test_0_is_a_value(post, path, body):
    for name, value in (("prompt_logprobs", 0), ("guided_choice", 0), ("guided_regex", 0), ("grammar", 0)):
        status, answer = post(path, {**body, name: value})
        assert (status, error(answer)[: len(name) + 2]) == (400, f"{name}: "), (path, answer)
    for name in ("prompt_logprobs", "guided_choice", "echo"):
        assert post(path, {**body, name: False})[0] == 200
    assert post("/v1/completions", {"prompt": "ab", "max_tokens": 1, "prompt_logprobs": 0})[0] == 200


@pytest.mark.parametrize(("path", "body"), CHATS)
def test_unknown_structured_outputs_are_refused(post, path, body):
    for name, value in (("zzz", 1), ("whitespace_pattern", " "), ("disable_any_whitespace", True), ("json_object", 0)):
        status, answer = post(path, {**body, "structured_outputs": {"choice": ["a"], name: value}})
        assert status == 400, answer
        assert error(answer).startswith(f"structured_outputs.{name}: "), answer
    off = {"choice": ["a"], "whitespace_pattern": None, "disable_any_whitespace": False, "json_object": False}
    assert post(path, {**body, "structured_outputs": off})[0] == 200


def test_an_empty_form_is_a_form(post):
    for path, body in OLLAMA[:2]:
        status, answer = post(path, {**body, "format": {}, "options": {"num_predict": 1}})
        assert (status, said(answer)[0] in '{["-0123456789tfn') == (200, True), answer
        for none in (None, ""):
            assert post(path, {**body, "format": none, "options": {"num_predict": 1}})[0] == 200
    assert error(post("/api/generate", {"prompt": "a", "raw": True, "format": {}})[1]).startswith("format: ")
    for form in ({}, {"schema": {}}):
        status, answer = post("/v1/completions", {"prompt": "a", "max_tokens": 1, "response_format": form})
        assert (status, answer["error"]["param"]) == (400, "response_format")


def test_ollamas_messages_may_be_parts_and_calls_halves(post):
    few = {"options": {"num_predict": 1}}
    count = {}
    for said_as in ("", [], None, "x", [{"type": "text", "text": "x"}]):
        status, answer = post("/api/chat", {"messages": [{"role": "user", "content": said_as}], **few})
        assert status == 200, answer
        count[json.dumps(said_as)] = answer["prompt_eval_count"]
    empty, *others = (count[json.dumps(c)] for c in ("", [], None))
    assert others == [empty, empty]
    assert count['"x"'] == count[json.dumps([{"type": "text", "text": "x"}])] == empty + 1
    nothing = {"role": "user", "content": [{"type": "image_url", "image_url": ""}, {"type": "text", "text": "x"}]}
    status, answer = post("/api/chat", {"messages": [nothing, HI], **few})
    assert (status, len(answer["gangpao"]["left_out"])) == (200, 1), answer
    assert error(post("/api/chat", {"messages": [nothing], **few})[1]).startswith("messages: 0: an image needs")
    for half in ({"type": "x"}, {"function": {}}, {"function": {"name": 1}}, {"function": "f"}):
        turns = [HI, {"role": "assistant", "content": "a", "tool_calls": [half]}, HI]
        status, answer = post("/api/chat", {"messages": turns, **few})
        assert (status, answer["gangpao"]["left_out"]) == (
            200, ["messages.1.tool_calls.0: a call without a function's name is left out"],
        ), answer  # fmt: skip


def test_temperature_0_is_the_most_likely_token_in_every_api(post, asked, tiny_server, monkeypatch):
    recommended = {"temperature": 0.6, "repetition_penalty": 1.3}
    monkeypatch.setattr(tiny_server.engine, "sampling", recommended)
    for path, body in OLLAMA:
        for more, penalty in (({"temperature": 0}, 1.0), ({}, 1.3), ({"temperature": 0, "repeat_penalty": 1.2}, 1.2)):
            asked.clear()
            assert post(path, {**body, "options": {"num_predict": 1, **more}})[0] == 200
            assert asked[0].repetition_penalty == penalty, (path, more)
    for path, body in (("/v1/completions", {"prompt": "a"}), CHATS[0]):
        asked.clear()
        assert post(path, {**body, "max_tokens": 1, "temperature": 0, "model_defaults": True})[0] == 200
        assert asked[0].repetition_penalty == 1.0


def test_n_predict_is_max_tokens(post, asked):
    status, answer = post("/v1/completions", {"prompt": "ab", "n_predict": 0, "echo": True})
    assert (status, answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == (200, "ab", 0)
    assert (
        post("/v1/completions", {"prompt": "ab", "max_tokens": 1, "n_predict": 0})[1]["usage"]["completion_tokens"] == 1
    )
    for name in ("n_predict", "max_tokens"):
        asked.clear()
        assert post("/v1/completions", {"prompt": "ab", name: -1, **BIAS})[0] == 200
        assert asked[0].max_tokens > 1024


def test_errors_name_their_field(post):
    for path, field, value in (
        ("/v1/completions", "prompt", ""), ("/v1/completions", "prompt", ["a", ""]), ("/v1/completions", "prompt", [10**6]),
        ("/v1/embeddings", "input", ""), ("/detokenize", "tokens", [10**6]),
    ):  # fmt: skip
        status, answer = post(path, {field: value})
        assert (status, answer["error"]["param"]) == (400, field), answer
        assert error(answer).startswith(f"{field}: ")


def test_long_stop_strings(post):
    for path, body in (*CHATS[:1], ("/v1/completions", {"prompt": "a", "max_tokens": 1})):
        assert post(path, {**body, "stop": "x" * MAX_STOP_CHARS})[0] == 200
        status, answer = post(path, {**body, "stop": ["x" * (MAX_STOP_CHARS + 1)]})
        assert (status, answer["error"]["param"]) == (400, "stop")
        assert re.match(rf"stop: .* 1 to {MAX_STOP_CHARS} characters", error(answer))
