"""Is a file served as it answers? The engine is asked in this process, then `gangpao serve` in another: the texts must be equal.

Each prompt is asked greedily as a text to go on with and, where the model has a chat template, as a question: whole, streamed, and
all of them at once. What a token costs follows from the speed of the engine here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.commands.watch.child import served
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.openai_client import Server, events, parse, tls
from gangpao.text.thoughts import split

PROMPTS = ("Once upon a time", "从前有一座山，", "def add(a, b):")
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was asked and found. differing: descriptions of answers that are not what the engine says; decode_tps: one stream."""

    file: str
    bytes: int
    asked: int
    differing: tuple[str, ...]
    texts: dict[str, str]
    prefill_tps: float
    decode_tps: float
    load_s: float
    yuan_per_million: float | None

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and how a server is asked the same."""

    name: str
    path: str
    body: dict[str, Any]
    want: str


def check(file: Path, prompts: Sequence[str], max_tokens: int, profile: str | None = None) -> Checked:
    """Ask a .gguf file with and without a server. Raises ValueError where the server does not start."""
    price = cost.get_profile(profile)[1]
    questions, speeds, load_s = _locally(file, prompts, max_tokens)
    with served(str(file)) as url, closing(Server(url, None, tls(None, False))) as server:
        name = server.pick(None)
        differing = list(_differing(server, name, questions))
    prefill, decode = speeds
    return Checked(
        file=str(file), bytes=file.stat().st_size, asked=3 * len(questions), differing=tuple(differing),
        texts={one.name: one.want for one in questions}, prefill_tps=prefill, decode_tps=decode, load_s=load_s,
        yuan_per_million=1e6 * cost.yuan(price, 1 / decode) if decode else None,
    )  # fmt: skip


def _locally(file: Path, prompts: Sequence[str], max_tokens: int) -> tuple[list[_Question], tuple[float, float], float]:
    """What the engine says in this process, tokens a second of prompts and answers, seconds to load."""
    begun = time.perf_counter()
    engine = Engine.load(file)
    load_s = time.perf_counter() - begun
    questions: list[_Question] = []
    read = written = 0
    read_s = written_s = 0.0
    settings = {"temperature": 0, "max_tokens": max_tokens}
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    for prompt in prompts:
        ids = engine.tokenizer.encode(prompt, add_bos=engine.tokenizer.adds_bos, parse_special=True)
        asked: list[tuple[str, str, dict[str, Any], list[int]]] = [("text", "/completions", {"prompt": prompt}, ids)]
        if engine.template.source:
            messages = [{"role": "user", "content": prompt}]
            ids = engine.template.encode(engine.tokenizer, messages)
            asked.append(("question", "/chat/completions", {"messages": messages}, ids))
        for kind, path, body, ids in asked:
            stop = engine.template.stop if kind == "question" else ()
            answer = engine.generate(ids, params, stop=stop, continues=kind == "text")
            text = "".join(split("".join(piece.text for piece in answer), answer.splitter()))
            stats = answer.stats
            read, read_s = read + stats.prompt_tokens, read_s + stats.ttft_s
            written, written_s = written + stats.completion_tokens - 1, written_s + stats.decode_s
            questions.append(_Question(f"{kind}: {prompt}", path, {**body, **settings}, text))
    speeds = (read / read_s if read_s else 0.0, written / written_s if written_s else 0.0)
    return questions, speeds, load_s


def _differing(server: Server, model: str, questions: Sequence[_Question]) -> Iterator[str]:
    def whole(one: _Question) -> str:
        return _text(server.ask(one.path, {**one.body, "model": model}), one)

    for one in questions:
        for how, said in (("whole", whole(one)), ("streamed", _streamed(server, model, one))):
            if said != one.want:
                yield f"{one.name}, {how}: {said!r:.200} instead of {one.want!r:.200}"
    with ThreadPoolExecutor(len(questions)) as pool:
        for one, said in zip(questions, pool.map(whole, questions), strict=True):
            if said != one.want:
                yield f"{one.name}, all at once: {said!r:.200} instead of {one.want!r:.200}"


def _text(answer: Any, one: _Question) -> str:
    choice = answer["choices"][0]
    return str(choice["text"] if one.path == "/completions" else _message(choice["message"]))


def _message(message: dict[str, Any]) -> str:
    return (message.get("reasoning_content") or "") + (message.get("content") or "")


def _streamed(server: Server, model: str, one: _Question) -> str:
    text = ""
    with closing(server.open(one.path, {**one.body, "model": model, "stream": True})) as response:
        for event in events(response.iter_bytes()):
            if event == _DONE:
                break
            for choice in parse(event).get("choices", ()):
                text += choice.get("text") or _message(choice.get("delta") or {})
    return text


def text_of(found: Checked) -> str:
    """For a person."""
    lines = [f"{found.file}: {found.asked} answers of a server"]
    lines[0] += ", all as the engine says them" if not found.differing else f", {len(found.differing)} differ:"
    lines += [f"  {line}" for line in found.differing]
    price = "" if found.yuan_per_million is None else f", {found.yuan_per_million:.3g} yuan a million tokens"
    lines.append(f"  {found.decode_tps:.1f} tokens a second, {found.prefill_tps:.0f} of a prompt{price}")
    return "\n".join(lines)


def dumped(found: Checked) -> str:
    """For a program."""
    return json.dumps(found.json(), ensure_ascii=False)
