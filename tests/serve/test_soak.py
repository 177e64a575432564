"""A server under mixed load for a long time: every answer is one, refusals are quick, memory and files stay where they were (R11).

GANGPAO_SOAK_S sets the seconds of the slow test (an hour without it).
"""

import json
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter

import httpx2
import numpy as np
import pytest

from tests.commands.test_serve import Process
from tests.serve.test_overload import send

CLIENTS = 24  # ten times what is answered at once is 40; half of these leave or are quick


class Load:
    """Clients of all kinds until `stop`; what they saw."""

    def __init__(self, url, expected):
        self.url, self.expected = url, expected
        self.stop = threading.Event()
        self.statuses = Counter()
        self.refusals = []
        self.tokens = 0
        self.wrong = []
        self._lock = threading.Lock()

    def run(self, seed):
        rng = random.Random(seed)
        kinds = [
            self.greedy,
            self.greedy,
            self.stream,
            self.leave,
            self.hostile,
            self.embed,
            self.constrained,
            self.other_face,
        ]
        with httpx2.Client(timeout=120, trust_env=False) as client:
            while not self.stop.is_set():
                rng.choice(kinds)(client, rng)

    def post(self, client, path, body):
        began = time.perf_counter()
        response = client.post(self.url + path, json=body)
        seconds = time.perf_counter() - began
        with self._lock:
            self.statuses[response.status_code] += 1
            if response.status_code == 429:
                self.refusals.append(seconds)
                assert int(response.headers["retry-after"]) >= 1
        if response.status_code == 429:
            time.sleep(0.05)
        return response

    def greedy(self, client, rng):
        i = rng.randrange(len(self.expected))
        response = self.post(client, "/v1/completions", prompt(i))
        if response.status_code == 200:
            body = response.json()
            with self._lock:
                self.tokens += body["usage"]["completion_tokens"]
                if body["choices"][0]["text"] != self.expected[i]:
                    self.wrong.append(i)

    def stream(self, client, rng):
        body = {"messages": [{"role": "user", "content": f"{rng.random()}"}], "max_tokens": 20, "stream": True}
        response = self.post(client, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
        if response.status_code == 200:
            last = response.text.split("\n\n")[-3:]
            assert last[1:] == ["data: [DONE]", ""]
            with self._lock:
                self.tokens += json.loads(last[0].removeprefix("data: "))["usage"]["completion_tokens"]

    def leave(self, client, rng):
        connection = send(self.url, {"prompt": f"{rng.random()}", "max_tokens": 100, "stream": rng.random() < 0.5})
        time.sleep(rng.random() * 0.05)
        connection.close()

    def hostile(self, client, rng):
        body = rng.choice([{"prompt": ""}, {"prompt": "x", "n": 99}, {"prompt": "x" * 100_000}, {}, {"prompt": [-1]}])
        assert self.post(client, "/v1/completions", body).status_code in (400, 429)

    def embed(self, client, rng):
        response = self.post(client, "/v1/embeddings", {"input": f"{rng.random()}"})
        assert response.status_code in (200, 429)

    def constrained(self, client, rng):
        """A schema that nobody has asked for before: what is kept of grammars must not grow."""
        name = f"key{rng.randrange(10**9)}"
        schema = {"type": "object", "properties": {name: {"enum": [1, True, None]}}, "required": [name]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60, "response_format": form}
        response = self.post(client, "/v1/chat/completions", body)
        if response.status_code == 200:
            answer = json.loads(response.json()["choices"][0]["message"]["content"])
            assert list(answer) == [name]

    def other_face(self, client, rng):
        messages = [{"role": "user", "content": f"{rng.random()}"}]
        stream = rng.random() < 0.5
        path, body = rng.choice([
            ("/v1/messages", {"messages": messages, "max_tokens": 10}),
            ("/api/chat", {"messages": messages, "options": {"num_predict": 10}}),
            ("/v1/responses", {"input": messages, "max_output_tokens": 10}),
        ])  # fmt: skip
        response = self.post(client, path, body | {"model": "tiny", "stream": stream})
        assert response.status_code in (200, 429)
        assert response.text


def prompt(i):
    return {"prompt": f"prompt {i}", "max_tokens": 24, "temperature": 0, "logit_bias": {"256": -100, "258": -100}}


def figures(url):
    """The server's own figures by name, labels left out."""
    text = httpx2.get(f"{url}/metrics", trust_env=False, timeout=30).text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0].rpartition(":")[2]: float(value) for name, value in rows}


def soak(url, seconds, clients=CLIENTS):
    """Run the load; what it saw, and the server's memory (MB) by time."""
    with httpx2.Client(timeout=60, trust_env=False) as client:
        texts = [client.post(f"{url}/v1/completions", json=prompt(i)).json()["choices"][0]["text"] for i in range(6)]
    load = Load(url, texts)
    threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    until = time.monotonic() + seconds
    while time.monotonic() < until and all(t.is_alive() for t in threads):
        time.sleep(seconds / 50)
        memory.append(figures(url)["process_resident_memory_bytes"] / 1e6)
    alive = all(t.is_alive() for t in threads)
    load.stop.set()
    for thread in threads:
        thread.join()
    assert alive, "a client ended with an error"
    return load, memory


def at_rest(url):
    """The server's figures when it has nothing left to do."""
    for _ in range(200):
        found = figures(url)
        if found["num_requests_running"] == found["num_requests_waiting"] == 0:
            return found
        time.sleep(0.05)
    pytest.fail("the server is still busy")


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(float(os.environ.get("GANGPAO_SOAK_S", 3600)), marks=pytest.mark.slow)]
)
def test_a_long_time_under_load(tiny_path, seconds):
    server = Process("-m", str(tiny_path), "--batch", "4", "--queue", "8")
    try:
        load, memory = soak(server.url, seconds)
        rest = at_rest(server.url)
    finally:
        code, err = server.end(signal.SIGTERM)
    assert (code, load.wrong) == (0, [])
    assert "Traceback" not in err
    assert "socket.send() raised" not in err
    assert set(load.statuses) <= {200, 400, 429}
    assert load.statuses[200] > 10
    assert rest["requests_failed_total"] == 0
    assert rest["process_open_fds"] < 40
    assert seconds < 200 or statistics.median(load.refusals) < 0.1
    later = memory[len(memory) // 3 :]
    slope = np.polyfit(np.arange(len(later)) * seconds / 50 / 60, later, 1)[0] if len(later) > 2 else 0.0
    print(
        dict(load.statuses),
        f"{load.tokens / seconds:.0f} tok/s, {slope:.2f} MB a minute",
        [round(m) for m in memory[::10]],
    )
    assert seconds < 200 or slope < 1, f"{slope:.2f} MB a minute"
