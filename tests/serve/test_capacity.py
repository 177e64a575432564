"""What a server still does under load, in milliseconds: ten times as many clients as there are places (R7) on a real model,
templates that never end (S4), hostile bodies (S5).

Slow: the server is a process of its own, each load runs for some seconds, twice and in turns. The clients write their requests
by hand: forty of a library's take a quarter of the machine and would be measured with the server.
"""

import asyncio
import itertools
import json
import math
import re
import statistics
import time

import httpx2
import pytest

from tests.commands.test_serve import Process
from tests.engine.tiny import write_tiny
from tests.serve.http.test_bodies import HOSTILE, SLOW_TEMPLATE

BATCH, QUEUE, SECONDS = 4, 8, 20


class Connection:
    """HTTP/1.1 to one server, one request after the other."""

    def __init__(self, url):
        self.host = url.removeprefix("http://")

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(*self.host.split(":"))
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        await self.writer.wait_closed()

    async def ask(self, line, body=b""):
        """(status, head, body, seconds)."""
        began = time.perf_counter()
        head = f"{line} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        found = await self.reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1]))
        return int(head.split()[1]), head, found, time.perf_counter() - began


async def client(url, until, seen, number):
    """Ask again and again; obey Retry-After."""
    async with Connection(url) as connection:
        for i in itertools.count():
            if time.monotonic() > until:
                return
            messages = [{"role": "user", "content": f"Tell me about {number}, {i}."}]
            body = json.dumps({"messages": messages, "max_tokens": 32, "temperature": 0}).encode()
            status, head, found, seconds = await connection.ask("POST /v1/chat/completions", body)
            seen["statuses"].append(status)
            if status == 200 and time.monotonic() < until:
                seen["tokens"] += json.loads(found)["usage"]["completion_tokens"]
            elif status == 429:
                seen["refused"].append(seconds)
                await asyncio.sleep(int(re.search(r"retry-after-ms: (\d+)", head)[1]) / 1000)


async def health(url, until, seen):
    async with Connection(url) as connection:
        while time.monotonic() < until:
            status, *_, seconds = await connection.ask("GET /health")
            assert status == 200
            seen["health"].append(seconds)
            await asyncio.sleep(0.1)


def load(url, clients):
    """What `clients` of them see in SECONDS."""
    seen = {"statuses": [], "tokens": 0, "refused": [], "health": []}

    async def all_of_them():
        until = time.monotonic() + SECONDS
        await asyncio.gather(health(url, until, seen), *(client(url, until, seen, i) for i in range(clients)))

    asyncio.run(all_of_them())
    return seen


def p99(values):
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else 0.0


def memory(url):
    text = httpx2.get(f"{url}/metrics", trust_env=False).text
    return float(next(x for x in text.splitlines() if x.startswith("process_resident_memory_bytes")).split()[1])


@pytest.mark.slow
def test_ten_times_the_load_costs_no_throughput(model_path):
    server = Process(
        "-m", str(model_path("smollm2-135m")), "--batch", str(BATCH), "--queue", str(QUEUE), "--context", "1024"
    )
    try:
        load(server.url, BATCH), load(server.url, 10 * BATCH)  # the cache's pages fill with what is remembered
        before = memory(server.url)
        runs = [(load(server.url, BATCH), load(server.url, 10 * BATCH)) for _ in range(2)]
        after = memory(server.url)
    finally:
        server.end(2)
    full = statistics.median(f["tokens"] for f, _ in runs) / SECONDS
    over = statistics.median(o["tokens"] for _, o in runs) / SECONDS
    refused = [s for _, o in runs for s in o["refused"]]
    checks = [s for _, o in runs for s in o["health"]]
    print(
        f"{full:.0f} and {over:.0f} tok/s, {len(refused)} refusals, p99 {p99(refused) * 1000:.0f} ms, "
        f"health p99 {p99(checks) * 1000:.0f} ms, memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    )
    assert {s for f, o in runs for s in (*f["statuses"], *o["statuses"])} == {200, 429}
    assert over >= 0.9 * full
    assert after < before * 1.05
    assert p99(refused) < 0.1
    assert p99(checks) < 0.05


@pytest.mark.slow
def test_templates_that_never_end_keep_nobody_waiting(tmp_path):
    server = Process("-m", str(write_tiny(tmp_path / "tiny.gguf", template=SLOW_TEMPLATE)))
    checks, statuses = [], []

    async def ask(begin, end):
        async with Connection(server.url) as connection:
            for i in range(begin, end):
                body = json.dumps({"messages": [{"role": "user", "content": str(i)}]}).encode()
                statuses.append((await connection.ask("POST /v1/chat/completions", body))[0])

    async def all_of_them():
        asking = asyncio.gather(ask(0, 25), ask(25, 50))
        async with Connection(server.url) as connection:
            while not asking.done():
                checks.append((await connection.ask("GET /health"))[-1])
                await asyncio.sleep(0.02)
        await asking

    try:
        asyncio.run(all_of_them())
    finally:
        server.end(2)
    print(f"{len(checks)} checks, p99 {p99(checks) * 1000:.0f} ms")
    assert statuses == [400] * 50
    assert p99(checks) < 0.05


@pytest.mark.slow
def test_hostile_bodies_are_refused_in_a_tenth_of_a_second(tiny_path):
    server = Process("-m", str(tiny_path))

    async def fastest(name):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | HOSTILE[name]
        raw = json.dumps(body).encode()
        async with Connection(server.url) as connection:
            found = [await connection.ask("POST /v1/chat/completions", raw) for _ in range(5)]
        assert all(400 <= status < 500 or name == "depth" for status, *_ in found)
        return min(seconds for *_, seconds in found)

    try:
        times = {name: asyncio.run(fastest(name)) for name in HOSTILE}
    finally:
        server.end(2)
    print(", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in times.items()))
    assert max(times.values()) < 0.1
