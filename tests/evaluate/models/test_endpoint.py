"""A server as a model that is evaluated: equal to the engine on the same file, and every oddity of other servers."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.evaluate.models.endpoint import Endpoint, generated
from gangpao.evaluate.models.price import Price
from gangpao.evaluate.models.protocol import Generated, Group, Prompt, Score
from gangpao.openai_client import Patience, RemoteError
from tests.commands.fake_server import answer, fake
from tests.serve.conftest import live_server, reference, tiny_path, tiny_server  # noqa: F401

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " London, of course"),
    ("中国的首都是北", "京。"),
    ("Answer:", " A"),
    ("Answer: ", "A"),
    ("x = [1, 2", ", 3]\n"),
]
HI = [{"role": "user", "content": "Say hello, please."}]
QUICK = Patience(silence_s=10, wait_s=20, broken=2)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def scores_of(endpoint: Endpoint, pairs: list[tuple[str, str]]) -> list[Score]:
    """One continuation a group."""
    found = dict(endpoint.score([Group(context, [continuation]) for context, continuation in pairs]))
    return [found[i][0] for i in range(len(pairs))]


def write(endpoint: Endpoint, *prompts: list | str, **options) -> list[Generated]:
    """Answers in order."""
    made = [Prompt(text=p, **options) if isinstance(p, str) else Prompt(messages=p, **options) for p in prompts]
    found = dict(endpoint.generate(made))
    return [found[i] for i in range(len(made))]


@pytest.fixture
def at():
    """Makes endpoints, closed at the end."""
    made: list[Endpoint] = []

    def make(url, **options):
        made.append(Endpoint(url, patience=QUICK, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def expected(engine: Engine, context: str, continuation: str) -> tuple[float, bool, int]:
    """The same by the engine's own forward pass, cut by bytes."""
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(context + continuation, add_bos=tokenizer.adds_bos, parse_special=True)
    rows = engine.session().try_out(ids).astype(np.float64)
    logs = rows - rows.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    begin, count = 0, 0
    for place, token in enumerate(ids):
        count += begin >= len(context.encode()) and bool(place)
        begin += len(tokenizer.token_bytes(token)) if place or not tokenizer.adds_bos else 0
    chosen = range(len(ids) - count, len(ids))
    greedy = all(int(rows[i - 1].argmax()) == ids[i] for i in chosen)
    return float(sum(logs[i - 1][ids[i]] for i in chosen)), greedy, count


def check_scores(endpoint: Endpoint, engine: Engine) -> None:
    for pair, score in zip(PAIRS, scores_of(endpoint, PAIRS), strict=True):
        logprob, greedy, count = expected(engine, *pair)
        assert score.tokens == count, pair
        if count:
            assert (score.logprob, score.greedy) == (pytest.approx(logprob, abs=2e-5 * count), greedy), pair
        else:
            assert score.fault == "empty_choice", pair


def test_scores_are_the_engines(tiny_server, tiny_path, at):  # noqa: F811
    check_scores(at(tiny_server.base_url), Engine.load(tiny_path))


def test_scores_and_texts_of_a_real_model(live_server, reference, at):  # noqa: F811
    endpoint = at(live_server.base_url)
    check_scores(endpoint, reference.engine)
    ((_, endings),) = endpoint.score([Group("The capital of France is", [" Paris", " Rome"])])
    assert [e.greedy for e in endings] == [True, False]
    ((_, whole),) = endpoint.roll(["The capital of France"])
    assert whole == pytest.approx(expected(reference.engine, "The", " capital of France")[0], abs=1e-4)
    chats = [HI, [{"role": "user", "content": "用中文数到三。"}]]
    answers = write(endpoint, *chats, max_tokens=12)
    assert [a.text for a in answers] == [reference.greedy(chat, 12) for chat in chats]
    (drawn,) = write(endpoint, HI, max_tokens=12, temperature=0.7, seed=5)
    assert drawn.text == reference.text(HI, SamplingParams(temperature=0.7, seed=5, max_tokens=12))
    (text,) = write(endpoint, "The capital of France is", max_tokens=6, stop=["."])
    run = reference.engine.generate(
        reference.engine.tokenizer.encode("The capital of France is"),
        SamplingParams(temperature=0, max_tokens=6, stop=(".",)), continues=True,
    )  # fmt: skip
    assert text.text == "".join(piece.text for piece in run)
    assert text.finish == run.finish_reason


def test_what_cannot_be_scored_is_said_and_harms_nobody(tiny_server, at):  # noqa: F811
    endpoint = at(tiny_server.base_url)
    long = "word " * 2000
    groups = [Group("a", [" b", long, ""]), Group("c", []), Group("a", [" d"])]
    found = dict(endpoint.score(groups))
    assert [[s.fault for s in found[i]] for i in range(3)] == [["", "too_long", "empty_choice"], [], [""]]
    assert found[0][1].logprob == float("-inf")
    with pytest.raises(ValueError, match=r"text 1 .* does not fit"):
        list(endpoint.roll(["a b", long]))
    answers = write(endpoint, HI, [{"role": "user", "content": long}], long, max_tokens=2)
    assert [a.finish == "too_long" for a in answers] == [False, True, True]
    assert endpoint.usage.completion - 1 == answers[0].tokens > 0  # one was written to look at its log-probability
    with pytest.raises(ValueError, match="renders conversations itself"):
        endpoint.prompt_of(HI)


# --- servers that are not ours


def completion(text, tokens, values, tops=None, written=0):
    told = {"tokens": tokens, "token_logprobs": values, "text_offset": [99] * len(tokens)}
    told["top_logprobs"] = tops or [None if v is None else {"best": v + 0.5} for v in values]
    return answer(200, {"choices": [{"text": text, "logprobs": told}], "usage": {"completion_tokens": written}})


def test_a_server_that_has_to_write_a_token(at):
    bodies = []

    def script(asked):
        bodies.append(asked.body)
        if asked.body["max_tokens"] == 0:
            return answer(400, {"error": {"message": "max_tokens must be at least 1"}})
        text = asked.body["prompt"]
        tokens = ["<s>", "The", " ca", "t", " sat"]
        tops = [None, {"x": -1.0}, {" ca": -0.5}, {"t": -0.25}, {" sat": -9.0}]
        return completion(text + " sat", tokens, [None, -2.0, -0.5, -0.25, -9.0], tops, written=1)

    with fake(script) as server:
        scores = scores_of(at(server.url), [("The", " cat")] * 3)
    assert scores == [Score(-0.75, True, 2)] * 3
    assert [b["max_tokens"] for b in bodies] == [0, 1, 1, 1, 1]
    assert [b.get("echo") for b in bodies] == [True, True, None, True, True]  # the third: what it writes is looked at


def test_a_text_that_leaves_no_room_for_a_token_is_scored(at):
    def script(asked):
        if not asked.body.get("echo"):
            return answer(400, {"error": {"message": "this prompt leaves no room for a token"}})
        return completion("The cat", ["The", " cat"], [None, -0.5], [None, {" cat": -0.5}])

    with fake(script) as server:
        assert scores_of(at(server.url), [("The", " cat")] * 2) == [Score(-0.5, True, 1)] * 2
        assert len(server.chats()) == 3  # asked once


@pytest.mark.parametrize("rows", [0, 1])
def test_log_probabilities_of_other_tokens_are_refused(rows, at):
    """llama-cpp-python gives a token of a prompt what the row behind its own says of it, where the model has no BOS; and to it
    max_tokens 0 is no limit."""
    words = ["The", " cat", " sat", " on"]
    worth = {" cat": -0.5, " sat": -0.25, " on": -2.0}
    lengths = []

    def script(asked):
        prompt, limit = asked.body["prompt"], asked.body["max_tokens"]
        count = next(n for n in range(5) if "".join(words[:n]) == prompt)
        names, written = words[:count], words[count : count + (limit or 9)]
        lengths.append(len(written))
        if not asked.body.get("echo"):
            return completion(written[0], written, [worth[written[0]]], [{written[0]: worth[written[0]]}])
        names = names + written
        values = [None, *(worth[w] - 7.0 * rows for w in names[1:])]
        return completion("".join(names), names, values, [None, *({"x": v} for v in values[1:])], written=len(written))

    with fake(script) as server:
        endpoint = at(server.url)
        if rows:
            with pytest.raises(RemoteError, match=r"wrote ' sat' .* of -0\.250, and gives it -7\.250 in a prompt"):
                scores_of(endpoint, [("The", " cat")] * 3)
        else:
            assert scores_of(endpoint, [("The", " cat")] * 3) == [Score(-0.5, True, 1)] * 3
    assert lengths[0] == 2
    assert set(lengths[1:]) == {1}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (lambda a: answer(404, b"not here"), "need /completions, which gangpao and vLLM have"),
        (lambda a: completion(" sat", [" sat"], [-1.0]), "leaves the prompt out.*need echo.*llama-server"),
        (lambda a: answer(200, {"choices": [{"text": a.body["prompt"], "logprobs": None}]}), "no token_logprobs"),
        (lambda a: completion(a.body["prompt"], ["a", "b"], [None, -1.0]), "do not show where ' cat' begins"),
        (lambda a: completion(a.body["prompt"], ["The", " cat"], [None, float("nan")]), "no numbers"),
        (lambda a: completion(a.body["prompt"], ["The", " cat"], [None, -1.0], [None, None]), "no top_logprobs"),
        (lambda a: answer(200, {"choices": []}), "without a choice"),
        (lambda a: answer(200, []), "not an answer"),
    ],
)
def test_what_a_server_lacks_is_named_and_asked_once(script, said, at):
    with fake(script) as server:
        endpoint = at(server.url)
        with pytest.raises(ValueError, match=said):
            scores_of(endpoint, [("The", " cat")] * 20)
        assert len(server.chats()) == 1


def test_a_text_without_a_context_needs_a_bos(at):
    bos: list[str] = []

    def script(_):
        names = [*bos, "cat"]
        return completion("cat", names, [None, -1.0][: len(names)], [None, {"x": -3.0}][: len(names)])

    with fake(script) as server:
        endpoint = at(server.url)
        with pytest.raises(ValueError, match=r"nothing stands before the first token .* give a context"):
            scores_of(endpoint, [("", "cat")])
        assert list(endpoint.roll(["cat"])) == [(0, 0.0)]
        bos.append("<s>")
        assert scores_of(endpoint, [("", "cat")]) == [Score(-1.0, True, 1)]
        assert list(endpoint.roll(["cat"])) == [(0, -1.0)]


def chat_answer(message, finish="stop", **usage):
    return answer(200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


def test_words_that_a_server_does_not_take_are_changed(at):
    bodies = []

    def script(asked):
        bodies.append(asked.body)
        if "max_tokens" in asked.body:
            return answer(400, {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}})
        if len(asked.body["stop"]) > 4:
            return answer(400, {"error": {"message": "Invalid 'stop': array too long"}})
        return chat_answer({"content": "one five two"})

    with fake(script) as server:
        endpoint = at(server.url, extra={"top_k": 1})
        stops = ["zero", "uno", "dos", "tres", " five"]
        (one,) = write(endpoint, HI, max_tokens=9, stop=stops, think=False)
        assert (one.text, one.finish) == ("one", "stop")
        assert len(bodies) == 3
        write(endpoint, HI, max_tokens=9, stop=stops)
        assert len(bodies) == 4
    assert bodies[3]["max_completion_tokens"] == 9
    assert bodies[2]["chat_template_kwargs"]["enable_thinking"] is False
    assert bodies[3]["top_k"] == 1
    assert not {"seed", "top_p", "chat_template_kwargs"} & bodies[3].keys()


def test_a_refusal_is_not_swallowed(at):
    body = {"error": {"message": "'temperature' does not support 0.7 with this model"}}
    with (
        fake(lambda _: answer(400, body)) as server,
        pytest.raises(RemoteError, match="'temperature' does not support"),
    ):
        write(at(server.url), HI, max_tokens=5, temperature=0.7)


THOUGHTS = [
    ({"content": "Yes.", "reasoning_content": "Hm. Hm."}, ("Yes.", "Hm. Hm."), 6),
    ({"content": "Yes.", "reasoning": "Hm. Hm."}, ("Yes.", "Hm. Hm."), 6),
    ({"content": "<think>\nHm. Hm.\n</think>\n\nYes."}, ("Yes.", "Hm. Hm."), 6),
    ({"content": "Hm. Hm.\n</think>\n\nYes."}, ("Yes.", "Hm. Hm."), 6),  # the template wrote the mark
    ({"content": [{"type": "thinking", "thinking": "Hm. Hm."}, {"type": "text", "text": "Yes."}]}, ("Yes.", "Hm. Hm."), 6),
    ({"content": "[THINK]Hm. Hm.[/THINK]Yes."}, ("Yes.", "Hm. Hm."), 6),
    ({"content": "The mark is </think> in text."}, ("The mark is </think> in text.", ""), 0),
    ({"content": "Yes."}, ("Yes.", ""), 0),
    ({"content": None, "refusal": "No."}, ("No.", ""), 0),
    ({"content": None}, ("", ""), 0),
]  # fmt: skip


@pytest.mark.parametrize(("message", "parts", "thinking_tokens"), THOUGHTS)
def test_thoughts_come_apart(message, parts, thinking_tokens):
    one = generated(message, "stop", {"completion_tokens": 10}, ())
    assert (one.text, one.thinking) == parts
    assert (one.tokens, one.thinking_tokens, one.in_thought) == (10, thinking_tokens, False)


def test_a_thought_that_the_limit_ended_is_marked():
    usage = {"completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 9}}
    for message in ({"content": None, "reasoning_content": "Hm"}, {"content": "<think>Hm"}, {"content": ""}):
        assert generated(message, "length", usage, ()).in_thought
    assert generated({"content": "<think>Hm"}, "length", {"completion_tokens": 4}, ()).thinking_tokens == 4
    assert not generated({"content": "<think>Hm</think>Well"}, "length", usage, ()).in_thought
    assert not generated({"content": "Well"}, "length", {"completion_tokens": 10}, ()).in_thought


def test_many_at_once_with_a_count_and_a_price(at):
    together = threading.Barrier(3)

    def script(asked):
        together.wait(10)
        details = {"prompt_tokens_details": {"cached_tokens": 40}}
        return chat_answer(
            {"content": asked.body["messages"][0]["content"]}, prompt_tokens=100, completion_tokens=10, **details
        )

    with fake(script) as server:
        endpoint = at(server.url, concurrency=3)
        answers = write(endpoint, *([{"role": "user", "content": str(n)}] for n in range(6)), max_tokens=5)
    assert [a.text for a in answers] == [str(n) for n in range(6)]
    usage = endpoint.usage
    assert (usage.prompt, usage.cached, usage.completion) == (360, 240, 60)
    assert Price.read("2,8,0.5", "--price").yuan(usage) == pytest.approx((360 * 2 + 240 * 0.5 + 60 * 8) / 1e6)
    assert Price(2, 8).yuan(usage) == pytest.approx((600 * 2 + 60 * 8) / 1e6)
    assert endpoint.facts.url == server.url + "/v1"
    with pytest.raises(ValueError, match="--price 'x': write IN,OUT"):
        Price.read("x", "--price")


# --- llama.cpp's own server

LLAMA = r"""
import os, sys
import xllamacpp as x
p = x.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx = p.n_batch = 512
p.n_parallel = 1
p.n_gpu_layers = 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.warmup = p.fit_params = False
p.verbosity = -1
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_llama_server_writes_and_is_refused_for_scores(model_path, at):
    pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", LLAMA, str(model_path("smollm2-135m"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ,
    )  # fmt: skip
    with child:
        try:
            endpoint = at(child.stdout.readline().strip())
            answers = write(endpoint, HI, "word " * 700, max_tokens=4)
            assert (answers[0].tokens, answers[0].finish) == (4, "length")
            assert answers[1].finish == "too_long"
            with pytest.raises(RemoteError, match=r"leaves the prompt out.*need echo"):
                scores_of(endpoint, PAIRS)
        finally:
            child.stdin.close()
