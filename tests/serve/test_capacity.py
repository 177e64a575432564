"""Ten times as many clients as there are places, against the same server with just as many (R7), on a real model.

Slow: the server is a process of its own, each load runs for some seconds, twice and in turns.
"""

import asyncio
import math
import statistics
import time

import httpx2
import pytest

from tests.serve.test_serve_command import Process

BATCH, QUEUE, SECONDS = 4, 8, 20


async def client(http, url, until, seen):
    """Ask again and again; obey Retry-After."""
    i = 0
    while time.monotonic() < until:
        i += 1
        body = {"messages": [{"role": "user", "content": f"Tell me about {i}."}], "max_tokens": 32, "temperature": 0}
        began = time.perf_counter()
        response = await http.post(f"{url}/v1/chat/completions", json=body)
        seconds = time.perf_counter() - began
        seen["statuses"].append(response.status_code)
        if response.status_code == 200 and time.monotonic() < until:
            seen["tokens"] += response.json()["usage"]["completion_tokens"]
        elif response.status_code == 429:
            seen["refused"].append(seconds)
            await asyncio.sleep(int(response.headers["retry-after-ms"]) / 1000)


async def health(http, url, until, seen):
    while time.monotonic() < until:
        began = time.perf_counter()
        assert (await http.get(f"{url}/health")).status_code == 200
        seen["health"].append(time.perf_counter() - began)
        await asyncio.sleep(0.1)


def load(url, clients):
    """What `clients` of them see in SECONDS."""
    seen = {"statuses": [], "tokens": 0, "refused": [], "health": []}

    async def all_of_them():
        until = time.monotonic() + SECONDS
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=120, trust_env=False, limits=limits) as http:
            await asyncio.gather(
                health(http, url, until, seen), *(client(http, url, until, seen) for _ in range(clients))
            )

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
