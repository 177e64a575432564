"""The figures of a server: what every face answers is in them, once."""

import pytest

from gangpao.serve.app import running
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


def counts(wire, url):
    """Answers in each histogram."""
    text = wire.get(f"{url}/metrics").text
    names = ("time_to_first_token_seconds", "e2e_request_latency_seconds")
    return [int(text.split(f"gangpao:{name}_count ")[1].split()[0]) for name in names]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "answers"), ASKED, ids=lambda x: x if isinstance(x, str) else "")
def test_every_answer_is_counted_once(url, wire, path, body, answers, stream):
    before = counts(wire, url)
    assert wire.post(url + path, json={**body, "stream": stream}).status_code == 200
    assert counts(wire, url) == [n + answers for n in before]
