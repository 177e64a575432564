"""Load on a server: start it, ask it one and many questions over HTTP, and note what it took.

Both engines get the same token ids (POST /v1/completions with a list of ids, streamed), greedy, and may not end early, so the
same number of tokens is made everywhere. The ids are the model's own chat template over a system prompt, the same for all
requests, and a question, different for each. What is timed is what a client sees: from the request to the first text, and
to the end.

A sample is a server process of its own: three times a new system prompt (cold) and another question behind it (hit), then
one answer alone, then twice STREAMS answers at once. The second time every slot of a server that keeps a cache for each slot
has the system prompt; that is the figure used, because it is the better one for such a server.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
import httpx2
import peers
from engines import Settings

from gangpao.engine.config import ModelConfig
from gangpao.formats.gguf import GGUF
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer

STREAMS = 8
COLD = 3  # system prompts that a sample reads for the first time
QUESTIONS = (
    "Name the largest lake in China.", "How does a bicycle stay upright?", "Write a haiku about rain.",
    "What is a prime number?", "为什么天空是蓝色的？", "Explain recursion to a child.", "How is tofu made?",
    "What does an index in a database do?", "Who wrote Dream of the Red Chamber?", "把“早上好”翻译成法语。",
    "Sort 3, 1, 2 in Python.", "What is the boiling point of water?", "Why do leaves fall in autumn?",
    "Give three uses of a paper clip.", "What is a mutex?", "How far away is the moon?",
    "Describe the taste of a lemon.", "用一句话介绍杭州。", "What is HTTP?", "When was the printing press invented?",
    "Tell me a joke about cats.", "How do magnets work?", "What is the capital of Australia?", "写一个自我介绍。",
)  # fmt: skip
CONTROLS = {"temperature": 0, "repetition_penalty": 1, "stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked of a model: prompts[s][q] are the ids of question q behind system prompt s."""

    path: Path
    prompts: list[list[list[int]]]
    shared: int  # tokens that the questions behind one system prompt have in common
    ends: list[int]
    tokens: int
    speculate: bool

    @property
    def slot(self) -> int:
        """Positions that one answer needs, rounded up as caches like it."""
        longest = max(len(p) for system in self.prompts for p in system)
        return -(-(longest + self.tokens + 8) // 64) * 64


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds to the first text and to the end, counts, and the text."""

    first_s: float
    seconds: float
    tokens: int
    cached: int
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One server process: seconds to the first token without and with the system prompt in its cache (medians), tok/s of one
    answer, of STREAMS at once for the first and the second time, peak bytes, share of the machine that others used, and how
    many of the STREAMS answers were the same alone (-1 where that was not asked)."""

    cold_s: float
    hit_s: float
    single_tps: float
    first_tps: float
    batch_tps: float
    peak_bytes: int
    others: float
    same: int = -1
    cached: int = 0


def work(path: Path, shared: int, tokens: int, speculate: bool) -> Work:
    """Prompts for the model at `path` with `shared` tokens in common. The system prompts are pages of this repository."""
    gguf = GGUF.open(path)
    tokenizer = Tokenizer.from_gguf(gguf.metadata)
    architecture = ModelConfig.from_gguf(gguf).architecture
    template = ChatTemplate.for_model(tokenizer.chat_template, tokenizer=tokenizer, architecture=architecture)
    docs = sorted((engines.HERE.parent / "docs").glob("*.md"))
    pages = [d.read_text(encoding="utf-8") for d in docs if not d.name.endswith(".zh.md")]
    pages = [page for page in pages if len(page) > 8 * shared][: COLD + 1]
    assert len(pages) == COLD + 1, "the docs are too short for system prompts of this length"
    prompts, common = [], shared
    for page in pages:
        ids = tokenizer.encode(page)
        for count in range(shared, 0, -1):  # the template adds some
            system = tokenizer.decode(ids[:count])
            found = [encode(template, tokenizer, system, question) for question in QUESTIONS]
            common = shared_length(found)
            if common <= shared:
                break
        prompts.append(found)
    return Work(path, prompts, common, sorted(tokenizer.end_ids), tokens, speculate)


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with in common."""
    columns = zip(*rows, strict=False)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, rows)))


def encode(template: ChatTemplate, tokenizer: Tokenizer, system: str, question: str) -> list[int]:
    """The ids of a system prompt and a question."""
    return template.encode(tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": question}])


# --- servers


def command(engine: str, job: Work, settings: Settings, port: int, streams: int = STREAMS) -> list[str]:
    """The command line of "gangpao" or of a variant of llama-server, for so many answers at once."""
    if engine == "gangpao":
        return [
            sys.executable, "-P", "-m", "gangpao.cli", "serve", "-m", str(job.path), "--port", str(port),
            "--batch", str(streams), "--context", str(job.slot),
        ]  # fmt: skip
    spec = ["--spec-type", settings["spec"]] if settings["spec"] != "none" else []
    return [
        str(peers.llama_server(engine)), "-m", str(job.path), "--port", str(port), "--host", "127.0.0.1",
        "-np", str(streams), "-cb", "-c", str(streams * job.slot), "-t", settings["threads"], "-fa", settings["flash"],
        "-ub", settings["ubatch"], "-b", "2048", "--repack" if settings["repack"] == "1" else "-nr",
        "-lm", settings["load"], "--cache-prompt", "--cache-reuse", settings["reuse"],
        "-kvu" if settings["kv"] == "unified" else "-no-kvu", *spec,
    ]  # fmt: skip


def knobs(job: Work, num_cores: int) -> dict[str, list[str]]:
    """Settings of llama-server worth trying, its defaults first. Drafts from the text only where ours may use them, too."""
    return {
        "threads": [str(num_cores)],
        "flash": ["on", "off"],
        "ubatch": ["512", "128", "2048"],
        "kv": ["split", "unified"],
        "reuse": ["0", "64"],
        "repack": ["1", "0"],
        "load": ["mmap", "none"],
        "spec": ["none", "ngram-simple", "ngram-mod"] if job.speculate else ["none"],
    }


@contextmanager
def server(engine: str, job: Work, settings: Settings, streams: int = STREAMS) -> Iterator[tuple[str, int]]:
    """A server that is ready: its address and its process group. Raises ValueError with its last lines when it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        argv = command(engine, job, settings, port, streams)
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_ready(process, url)
            yield url, process.pid
        except (OSError, ValueError, httpx2.HTTPError) as error:
            log.seek(0)
            last = "\n".join(log.read().splitlines()[-8:])
            raise ValueError(f"{' '.join(argv)}: {error}\n{last}") from None
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(process: "subprocess.Popen[bytes]", url: str, limit_s: float = 300.0) -> None:
    """Until /health answers 200."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ValueError(f"ended with {process.returncode} before it was ready")
        try:
            if httpx2.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise ValueError(f"not ready within {limit_s:.0f} s")


# --- questions


class Client:
    """Asks a server. One connection a request, so that nothing waits for another."""

    def __init__(self, url: str, engine: str, job: Work) -> None:
        self._url = url
        self._job = job
        # Neither may end early; each is told so in its own way.
        stay = {"logit_bias": {str(i): -100 for i in job.ends}} if engine == "gangpao" else {"ignore_eos": True}
        self._body = {**CONTROLS, **stay, "max_tokens": job.tokens, "speculate": job.speculate}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx2.AsyncClient(trust_env=False, timeout=600, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, system: int, question: int) -> Answer:
        """One streamed answer."""
        prompt = self._job.prompts[system][question % len(QUESTIONS)]
        start, first, text, usage = time.perf_counter(), 0.0, "", {}
        body = {**self._body, "prompt": prompt}
        async with self._http.stream("POST", f"{self._url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
            async for chunk in chunks(response):
                piece = "".join(c.get("text") or "" for c in chunk.get("choices") or ())
                first = first or (time.perf_counter() - start if piece else 0.0)
                text += piece
                usage = chunk.get("usage") or usage
        seconds = time.perf_counter() - start
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Answer(first, seconds, usage["completion_tokens"], cached, text)

    async def ask_many(self, system: int, first: int) -> tuple[list[Answer], float]:
        """STREAMS answers at once, and tok/s of all of them together."""
        start = time.perf_counter()
        answers = await asyncio.gather(*(self.ask(system, first + i) for i in range(STREAMS)))
        return answers, sum(a.tokens for a in answers) / (time.perf_counter() - start)


async def chunks(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    rest = b""
    async for raw in response.aiter_bytes():
        *events, rest = (rest + raw).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                yield json.loads(event[6:])


def sample(engine: str, job: Work, settings: Settings, *, check: bool = False, only_batch: bool = False) -> Sample:
    """Measure one server process. check: also ask the last questions one by one and compare."""
    with server(engine, job, settings) as (url, group):
        return asyncio.run(_sample(url, engine, job, group, check, only_batch))


async def _sample(url: str, engine: str, job: Work, group: int, check: bool, only_batch: bool) -> Sample:
    client = Client(url, engine, job)
    try:
        await client.ask(COLD, 0)  # warms up; its system prompt is used for nothing else
        busy, own, start = engines.busy_seconds(), group_seconds(group), time.monotonic()
        cold, hit, single = [], [], []
        for system in [] if only_batch else range(COLD):
            cold.append(await client.ask(system, 0))
            hit.append(await client.ask(system, 1))
        for question in [] if only_batch else (2, 3):
            single.append(await client.ask(COLD - 1, question))
        _, first_tps = await client.ask_many(COLD - 1, STREAMS)
        answers, batch_tps = await client.ask_many(COLD - 1, 2 * STREAMS)
        wall = time.monotonic() - start
        others = engines.busy_seconds() - busy - (group_seconds(group) - own)
        same = await _same(client, answers) if check else -1
    finally:
        await client.close()
    assert all(a.tokens == job.tokens for a in [*cold, *hit, *single, *answers]), "an answer ended early"
    return Sample(
        cold_s=median([a.first_s for a in cold]),
        hit_s=median([a.first_s for a in hit]),
        single_tps=median([a.tokens / a.seconds for a in single]),
        first_tps=first_tps,
        batch_tps=batch_tps,
        peak_bytes=peak_bytes(group),
        others=min(1.0, max(0.0, others / (wall * (os.cpu_count() or 1)))),
        same=same,
        cached=min((a.cached for a in answers), default=0),
    )


async def _same(client: Client, answers: Sequence[Answer]) -> int:
    same = 0
    for i, together in enumerate(answers):
        alone = await client.ask(COLD - 1, 2 * STREAMS + i)
        same += alone.text == together.text
    return same


def median(values: Sequence[float]) -> float:
    """The median, and 0 of nothing."""
    return statistics.median(values) if values else 0.0


def group_seconds(group: int) -> float:
    """CPU seconds of a process group and of this process so far."""
    own = time.process_time()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[2]) == group:
            own += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
