"""Many at once on one server: 32 answers of mixed lengths, half of them behind one system prompt, coming one after the other.

What somebody sees who is answered meanwhile: how long it is between one token and the next. Reported are the median of these gaps,
their 99th percentile and its ratio (goal 2), the wait for the first token, and tok/s of all together. Drafts are off, so that
a piece of the stream is a token. Requests come in a drawn order at drawn moments, the same for every server and round; each sample
is a server process of its own, ours and llama-server in turn.

`python benchmarks/crowd.py qwen2.5-coder-0.5b` (five minutes; `--engines gangpao` without llama-server). The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import report
import serving_load
from against_llama import find_model, say, warm
from serving_load import CONTROLS, QUESTIONS, Work

from gangpao.formats.gguf import GGUF
from gangpao.text.tokenizer import Tokenizer

STREAMS, SEED = 32, 5
SHARED, LONGEST, TOKENS = 512, 900, (16, 128)  # ids of the system prompt, of an own prompt at most, and of an answer
EVERY_S = 0.25  # between two requests, on average
GOAL = 2.0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, the tokens of its answer, and when it comes."""

    ids: list[int]
    tokens: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one answer: seconds to the first piece, and between one piece and the next."""

    first_s: float
    gaps_s: list[float]
    tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one sample; milliseconds."""

    gap_median: float
    gap_p99: float
    gap_longest: float
    first_median: float
    first_p99: float
    tps: float

    @property
    def ratio(self) -> float:
        return self.gap_p99 / self.gap_median


def requests(path: Path) -> list[Request]:
    """The crowd: the same for every server. Texts are pages of this repository."""
    tokenizer = Tokenizer.from_gguf(GGUF.open(path).metadata)
    docs = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
    pages = [tokenizer.encode(d.read_text(encoding="utf-8")) for d in docs[:STREAMS]]
    draw, at, out = random.Random(SEED), 0.0, []
    for i in range(STREAMS):
        question = tokenizer.encode("\n\n" + QUESTIONS[i % len(QUESTIONS)])
        own = pages[i % len(pages)][: draw.randint(30, LONGEST)]
        out.append(Request((pages[0][:SHARED] if i % 2 else own) + question, draw.randint(*TOKENS), at))
        at += draw.expovariate(1 / EVERY_S)
    return out


async def ask(http: httpx2.AsyncClient, url: str, request: Request, stay: dict[str, Any]) -> Seen:
    """Wait until it is time, then stream an answer."""
    await asyncio.sleep(request.at_s)
    start, times, usage = time.perf_counter(), list[float](), {}
    body = {**CONTROLS, **stay, "prompt": request.ids, "max_tokens": request.tokens, "speculate": False}
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise ValueError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
        async for chunk in serving_load.chunks(response):
            if any(c.get("text") for c in chunk.get("choices") or ()):
                times.append(time.perf_counter())
            usage = chunk.get("usage") or usage
    assert usage["completion_tokens"] == request.tokens, "an answer ended early"
    return Seen(times[0] - start, [b - a for a, b in pairwise(times)], request.tokens)


async def crowd(url: str, wanted: Sequence[Request], stay: dict[str, Any]) -> Figures:
    """All requests to one server."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(trust_env=False, timeout=600, limits=limits) as http:
        await ask(http, url, Request(wanted[0].ids[:40], 16, 0.0), stay)  # warms up
        start = time.perf_counter()
        seen = await asyncio.gather(*(ask(http, url, one, stay) for one in wanted))
        seconds = time.perf_counter() - start
    gaps, firsts = sorted(g for s in seen for g in s.gaps_s), sorted(s.first_s for s in seen)

    def percentile(values: list[float], share: float) -> float:
        return 1e3 * values[min(len(values) - 1, int(share * len(values)))]

    return Figures(
        percentile(gaps, 0.5), percentile(gaps, 0.99), 1e3 * gaps[-1], percentile(firsts, 0.5), percentile(firsts, 0.99),
        sum(s.tokens for s in seen) / seconds,
    )  # fmt: skip


def sample(engine: str, path: Path, wanted: Sequence[Request]) -> Figures:
    """One server process."""
    ends = sorted(Tokenizer.from_gguf(GGUF.open(path).metadata).end_ids)
    job = Work(path, [[r.ids for r in wanted]], SHARED, ends, TOKENS[1], speculate=False)
    settings = {name: values[0] for name, values in serving_load.knobs(job, 2).items()}
    stay: dict[str, Any] = {"ignore_eos": True}
    if engine == "gangpao":
        stay = {"logit_bias": {str(i): -100 for i in ends}}
    with serving_load.server(engine, job, settings, STREAMS) as (url, _):
        return asyncio.run(crowd(url, wanted, stay))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="catalog name or .gguf file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default="gangpao,server", help="of gangpao,server,server-without-amx")
    options = parser.parse_args()
    path = find_model(options.model)
    warm(path)
    wanted, engines = requests(path), options.engines.split(",")
    found: dict[str, list[Figures]] = {engine: [] for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            found[engine].append(one := sample(engine, path, wanted))
            say(
                f"  round {number + 1} of {options.rounds}: {engine:10} {one.gap_median:.0f} ms a token, p99 {one.gap_p99:.0f} "
                f"({one.ratio:.2f} x, goal {GOAL:g}), longest {one.gap_longest:.0f}; first token {one.first_median:.0f}, p99 "
                f"{one.first_p99:.0f} ms; {one.tps:.0f} tok/s"
            )
    medians = {
        engine: {name: round(statistics.median(asdict(s)[name] for s in samples), 2) for name in asdict(samples[0])}
        | {"ratio": round(statistics.median(s.ratio for s in samples), 3)}
        for engine, samples in found.items()
    }
    print(
        json.dumps(
            {
                "model": options.model,
                "hardware": report.hardware_slug(),
                "commit": report.commit(serving_load.engines.HERE),
                **medians,
            }
        )
    )


if __name__ == "__main__":
    main()
