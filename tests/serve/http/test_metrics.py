"""The figures of a server: what every API answers is in them, once."""

import re
import time

import pytest

from gangpao.engine.answer import Stats
from gangpao.serve.app import running
from gangpao.serve.http.metrics import Metrics
from gangpao.serve.server import Server, Settings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
TEXT = {"model": "tiny", "prompt": "abc", "max_tokens": 5}
LINES = {"num_predict": 5}
ASKED = [
    ("/v1/chat/completions", CHAT, 1),
    ("/v1/chat/completions", {**CHAT, "n": 2}, 2),
    ("/v1/completions", TEXT, 1),
    ("/v1/completions", {**TEXT, "prompt": ["abc", "de"], "n": 2}, 4),
    ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 5}, 1),
    ("/v1/messages", CHAT, 1),
    ("/api/chat", {"model": "tiny", "messages": CHAT["messages"], "options": LINES}, 1),
    ("/api/generate", {"model": "tiny", "prompt": "abc", "options": LINES}, 1),
    ("/api/generate", {"model": "tiny", "prompt": "abc", "raw": True, "options": LINES}, 1),
]


@pytest.fixture(scope="module")
def url(tiny_path):
    with running(Server(Settings({"tiny": tiny_path}, port=0, batch=4, queue=8, threads=1))) as base_url:
        yield base_url


NAMES = {  # vLLM's own, with their types
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
}
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def parsed(text):
    """Types by family, and values by name and labels, of a document in Prometheus' text format; each line has to be of it."""
    types, values, family = {}, {}, ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == family
            assert name not in types
            types[name] = kind
        elif line.startswith("# HELP "):
            family = line.split()[2]
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            suffixes = ("", "_bucket", "_sum", "_count") if types[family] == "histogram" else ("",)
            assert name in {family + suffix for suffix in suffixes}
            assert (name, labels) not in values
            values[name, labels] = float(value)
    return types, values


def read(wire, url):
    answer = wire.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


def counts(wire, url):
    """Answers in the histograms and by their ends."""
    _, values = read(wire, url)
    ours = 'model_name="tiny",engine="0"'
    names = ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_generation_tokens")
    ended = sum(value for (name, _), value in values.items() if name == "vllm:request_success_total")
    return [*(values.get((f"vllm:{name}_count", ours), 0) for name in names), ended]


def test_names_types_and_labels_are_those_of_vllm(url, wire):
    for body in (CHAT, {**CHAT, "stream": True}):
        assert wire.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    ours = 'model_name="tiny",engine="0"'
    until = time.monotonic() + 5
    while True:  # the thread that writes answers counts one after its last piece is out
        types, values = read(wire, url)
        said, counted = (
            values[f"vllm:{name}", ours] for name in ("request_generation_tokens_sum", "generation_tokens_total")
        )
        if said == counted or time.monotonic() > until:
            break
        time.sleep(0.01)
    assert {name: types.get(name) for name in NAMES} == NAMES
    for name, kind in NAMES.items():
        if kind != "histogram":
            assert any(n == name and labels.startswith(ours) for n, labels in values), name
            continue
        buckets = [
            v for (n, labels), v in values.items() if n == f"{name}_bucket" and labels.startswith(f'{ours},le="')
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == values[f"{name}_bucket", f'{ours},le="+Inf"'] == values[f"{name}_count", ours]
    asked = values["vllm:request_prompt_tokens_sum", ours]
    assert asked == values["vllm:prompt_tokens_total", ours] > 0
    said = values["vllm:request_generation_tokens_sum", ours]
    assert said == values["vllm:generation_tokens_total", ours]
    between = values["vllm:inter_token_latency_seconds_count", ours]
    assert 0 < between < said  # the first token of an answer has none before it


def test_a_name_of_any_letters_is_escaped():
    metrics = Metrics()
    metrics.answered('a"b\\c\nd', Stats(prompt_tokens=3), "stop", 1.5)
    _, values = parsed(metrics.text({}))
    assert values["vllm:request_prompt_tokens_sum", 'model_name="a\\"b\\\\c\\nd",engine="0"'] == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "answers"), ASKED, ids=lambda x: x if isinstance(x, str) else "")
def test_every_answer_is_counted_once(url, wire, path, body, answers, stream):
    before = counts(wire, url)
    assert wire.post(url + path, json={**body, "stream": stream}).status_code == 200
    assert counts(wire, url) == [n + answers for n in before]
