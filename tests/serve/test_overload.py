"""More requests than there is room for, and clients that leave (R7, R8)."""

import asyncio
import contextlib
import gc
import json
import random
import socket
import time

import httpx2
import pytest

from gangpao.machine import rss_mb
from gangpao.serve.app import running
from gangpao.serve.http.connection import Protocol
from gangpao.serve.server import Server, Settings


def settled(server, seconds=10.0):
    """Wait until nothing runs or waits."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if all(m.idle and not m.scheduler.preparing for m in server.models.loaded().values()):
            return
        time.sleep(0.01)
    pytest.fail("the server is still busy")


def long(n=400):
    return {"prompt": "abc", "max_tokens": n, "temperature": 0, "logit_bias": {"256": -100, "258": -100}}


def test_at_ten_times_the_capacity_each_is_answered_or_told_when_to_come_back(tiny_path):
    settings = Settings({"tiny": tiny_path}, port=0, batch=2, queue=4, threads=1)
    server = Server(settings)

    async def one(client, url):
        began = time.perf_counter()
        response = await client.post(f"{url}/v1/completions", json=long(40))
        return response.status_code, time.perf_counter() - began, response.headers

    async def storm(url):
        async with httpx2.AsyncClient(timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=100)) as client:
            return await asyncio.gather(*(one(client, url) for _ in range(60)))

    with running(server) as url:
        made = asyncio.run(storm(url))
        settled(server)
    statuses = [status for status, _, _ in made]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4
    for status, _, headers in made:
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 120
            assert int(headers["retry-after-ms"]) >= 1


def slowed(server, monkeypatch, seconds=0.01):
    """Give every step of the tiny model the time that a real one takes."""
    model = server.models.loaded()["tiny"].engine.model
    real = model.step
    monkeypatch.setattr(model, "step", lambda segments: (time.sleep(seconds), real(segments))[1])


def test_a_refusal_takes_a_moment(tiny_path, wire, monkeypatch):
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=1, queue=1, threads=1))
    with running(server) as url, contextlib.ExitStack() as stack:
        slowed(server, monkeypatch)
        for _ in range(2):
            stream = stack.enter_context(wire.stream("POST", f"{url}/v1/completions", json=long() | {"stream": True}))
            assert stream.status_code == 200
        times = []
        for _ in range(5):
            began = time.perf_counter()
            assert wire.post(f"{url}/v1/completions", json=long()).status_code == 429
            times.append(time.perf_counter() - began)
        assert min(times) < 0.5  # the others share the machine with whatever else runs here
        assert wire.get(f"{url}/health").status_code == 200


def test_no_answer_waits_for_an_acknowledgement(tiny_server, wire):
    times = []
    for _ in range(20):
        began = time.perf_counter()
        wire.get(f"{tiny_server.base_url}/health")
        times.append(time.perf_counter() - began)
    assert min(times[1:]) < 0.03  # a head and a body without TCP_NODELAY take 0.04 s, every time


def send(url, body, path="/v1/completions"):
    """A connection with a request on it, of which nobody reads the answer."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_at_once(tiny_path, stream, monkeypatch):
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=1, queue=4, threads=1))
    with running(server) as url:
        slowed(server, monkeypatch, 0.1)
        counters = server.models.loaded()["tiny"].scheduler.counters
        connection = send(url, long(500) | {"stream": stream, "n": 2})
        until = time.monotonic() + 10
        while not counters.running and time.monotonic() < until:
            time.sleep(0.001)
        connection.close()
        steps = counters.steps
        settled(server, 5)
        assert (counters.finished, counters.cancelled) == (0, 2)
        assert counters.steps <= steps + 2


def disconnects(server, url, count, seed=0):
    """Clients that leave at random moments, while others are to get their answers unchanged."""
    rng = random.Random(seed)
    body = long(30) | {"prompt": "hello"}
    with httpx2.Client(timeout=60, trust_env=False) as client:
        expected = client.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]
        wrong = 0
        for i in range(count):
            chat = {"messages": [{"role": "user", "content": f"{i}"}], "max_tokens": 200}
            path, leaving = rng.choice([("/v1/chat/completions", chat), ("/v1/completions", long(200))])
            connection = send(url, leaving | {"stream": rng.random() < 0.5}, path)
            time.sleep(rng.random() * 0.02)
            connection.close()
            if i % 10 == 0:
                answer = client.post(f"{url}/v1/completions", json=body)
                while answer.status_code == 429:
                    time.sleep(0.02)
                    answer = client.post(f"{url}/v1/completions", json=body)
                wrong += answer.json()["choices"][0]["text"] != expected
    settled(server)
    return wrong


def open_files(url):
    text = httpx2.get(f"{url}/metrics", trust_env=False).text
    return int(next(line for line in text.splitlines() if line.startswith("process_open_fds")).split()[1])


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_change_nothing_and_leave_nothing_behind(tiny_server, count):
    server, url = tiny_server.server, tiny_server.base_url
    disconnects(server, url, 10, seed=1)  # memory and threads that come with the first requests
    files, memory = open_files(url), rss_mb()
    assert disconnects(server, url, count) == 0
    model = server.models.loaded()["tiny"]
    assert (model.users, model.scheduler.preparing) == (0, 0)
    assert model.scheduler.counters.failed == 0
    assert open_files(url) <= files + 2
    assert rss_mb() < memory + 30


def test_nothing_is_kept_of_a_connection_that_was_reset(tiny_path):
    def kept():
        gc.collect()
        return sum(type(thing) is Protocol for thing in gc.get_objects())  # isinstance would ask proxies of others

    before = kept()
    with running(Server(Settings({"tiny": tiny_path}, port=0, threads=1))) as url:
        for _ in range(20):
            connection = send(url, {"prompt": ""})
            assert connection.recv(1) == b"H"  # the rest is there and unread when it is closed, so the kernel resets
            connection.close()
        until = time.monotonic() + 10  # far less than a connection is kept alive for
        while kept() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert kept() <= before


def test_what_was_begun_ends_before_the_server_does(tiny_path):
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=2, queue=4, threads=1))
    with running(server, grace_s=20) as url:
        connection = send(url, long(300))
        counters = server.models.loaded()["tiny"].scheduler.counters
        while not counters.running:
            time.sleep(0.001)
    connection.settimeout(5)
    with connection:
        data = b""
        while more := connection.recv(65536):
            data += more
    assert data.startswith(b"HTTP/1.1 200")
    assert json.loads(data.split(b"\r\n\r\n", 1)[1])["usage"]["completion_tokens"] == 300


def test_an_engine_that_fails_is_an_error_in_the_stream(tiny_path, wire, monkeypatch):
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=2, queue=4, threads=1))
    with running(server) as url:
        model = server.models.loaded()["tiny"].engine.model
        real, steps = model.step, []

        def fails(segments):
            steps.append(1)
            if len(steps) == 5:
                raise RuntimeError("a secret of ours")
            return real(segments)

        monkeypatch.setattr(model, "step", fails)
        with wire.stream("POST", f"{url}/v1/completions", json=long(50) | {"stream": True}) as response:
            text = "".join(response.iter_text())
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "server_error"
        assert "secret" not in text
        assert wire.post(f"{url}/v1/completions", json=long(5)).status_code == 200
