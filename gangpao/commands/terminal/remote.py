"""`gangpao chat --connect URL`: the same conversation with a server that speaks OpenAI's chat API, ours or another.

A question is one streamed POST /v1/chat/completions with all messages. Only what the user chose is sent: sampling
options that are not on the command line are left to the server, and one of ours is asked for what its model recommends.
A server that is busy says Retry-After, and is asked again then; every other refusal is one line that says what to do.
When the server says that the context is full, the oldest half of the turns is left out, as a chat with an engine here
does it.

A model's thought comes apart from its answer (reasoning_content or reasoning), as a part of it (type thinking), or in front of it
between <think> and </think>; it is shown in all three cases and never sent back.

A picture is sent as a part of its question, in a data: URL. What it gives up: no tools.
"""

import json
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx2

from gangpao import cost
from gangpao.commands.terminal import screen
from gangpao.commands.terminal.attach import as_parts
from gangpao.commands.terminal.conversation import Run, Transcript, Turns, question_of
from gangpao.engine.answer import Progress, Stats
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID
from gangpao.images.look import Picture
from gangpao.openai_client import (
    NO_LIST,
    SHOWN,
    RemoteError,
    Server,
    causes,
    events,
    parse,
    read_body,
    said_in,
    texts_of,
    tls,
    too_long,
    whole_number,
)
from gangpao.text.templates.chat import Message
from gangpao.text.thoughts import KNOWN, Said, Splitter


def connect(
    url: str,
    model: str | None,
    params: Mapping[str, Any],
    *,
    system: str = "",
    api_key: str | None = None,
    ca: Path | None = None,
    insecure: bool = False,
    thinking: Thinking = NOTHING_SAID,
) -> "Remote":
    """A conversation with the server at `url`; `params` are OpenAI's names of what the user chose.

    The model is the server's only one when none is named. The caller closes what it gets. Raises RemoteError (a
    ValueError) saying what to do.
    """
    server = Server(url, api_key, tls(ca, insecure), on_wait=screen.note)
    try:
        return Remote(server, server.pick(model), dict(params), system=system, thinking=thinking)
    except BaseException:
        server.close()
        raise


@dataclass(slots=True)
class Remote(Turns):
    """A chat with a server: its messages are sent anew with every question, and cost is what the server says."""

    server: Server
    model: str
    params: dict[str, Any]
    yuan: float | None = None
    last: Stats | None = None
    unset: ClassVar[str] = "(the server's choice)"

    @property
    def model_name(self) -> str:
        """The model that answers."""
        return self.model

    def setting(self, name: str) -> object:
        """A sampling option as it is sent; None is not sent."""
        return self.params.get(name)

    def set(self, name: str, value: object) -> None:
        """Change a sampling option from the next question on; None leaves it to the server again."""
        if value is None:
            self.params.pop(name, None)
        else:
            self.params[name] = value

    def models(self) -> list[str]:
        """Names that the server lists. Raises RemoteError."""
        return self.server.models()

    def switch(self, model: str) -> None:
        """Go on with another model of the server. Raises RemoteError where its list has no such name."""
        try:
            known = self.server.models()
        except RemoteError as error:
            if error.status not in NO_LIST:
                raise
            known = [model]  # the server will know
        if model not in known:
            raise RemoteError(f"{self.server.base} lists no model {model}; it has {', '.join(known[:50]) or 'none'}")
        self.model, self.forgotten = model, 0

    def sees(self) -> str:
        """Nobody knows before the server is asked."""
        return ""

    def ask(
        self, text: str, on_prefill: Progress | None = None, *, attempt: int = 0, pictures: Sequence[Picture] = ()
    ) -> "RemoteRun":
        """Start the answer to `text` behind pictures; give it to `keep` when it has ended or was interrupted. attempt: how many
        answers to the same question came before; a given seed goes on by so many.

        on_prefill is not called: the server does not say how far it is. Raises RemoteError, and remembers nothing.
        """
        dropped = 0
        question = question_of(text, pictures)
        start = time.perf_counter()
        while True:
            turns = [*self.turns[self.forgotten + dropped :], question]
            try:
                response = self.server.open("/chat/completions", self._body([*self.head, *turns], attempt))
                break
            except RemoteError as error:
                if not too_long(error) or len(turns) < 2:
                    raise
                half = len(turns) // 2
                dropped += next((i for i in range(half, len(turns)) if turns[i]["role"] == "user"), len(turns) - 1)
        self.asked(question, dropped)
        return RemoteRun(response, start)

    def keep(self, run: Run) -> None:
        """End the answer and remember what it said, and what it cost. A question without an answer is forgotten."""
        Turns.keep(self, run)
        self.last = run.stats
        if isinstance(run, RemoteRun) and run.yuan is not None:
            self.yuan = (self.yuan or 0.0) + run.yuan

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def greeting(self) -> str:
        """Who answers, in one line."""
        return f"{self.model} at {self.server.base}"

    def figures(self, run: Run) -> str:
        """What the answer took, in one line; yuan where the server says them."""
        return screen.figures(run.stats, run.yuan if isinstance(run, RemoteRun) else None)

    def facts(self) -> list[tuple[str, str]]:
        """The model and its server, and how many tokens the last exchange had."""
        used = self.last.prompt_tokens + self.last.completion_tokens if self.last else 0
        return [("model", self.greeting()), ("context", f"{used} tokens, {self._cached()} of them from its cache")]

    def costs(self, seconds: float) -> list[tuple[str, str]]:
        """What the server said that the answers cost."""
        return [] if self.yuan is None else [("cost", f"{cost.show_yuan(self.yuan)} (the server's figure)")]

    def _cached(self) -> int:
        return self.last.cached_tokens if self.last else 0

    def _body(self, messages: list[Message], attempt: int) -> dict[str, Any]:
        seed = self.params.get("seed")
        return {
            "model": self.model,
            "messages": [as_parts(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"model_defaults": True} if self.server.ours else {}),  # others may refuse what they do not know
            **self.params,
            **self._switches(),
            **({} if seed is None else {"seed": seed + attempt}),
        }

    def _switches(self) -> dict[str, Any]:
        """What was chosen about thinking, as vLLM, SGLang, llama.cpp's server and ours take it."""
        variables, budget = self.thinking.variables(), self.thinking.think_budget
        out: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
        return out | ({} if budget is None else {"thinking_budget": budget})


class RemoteRun(Transcript):
    """One streamed answer. Counts are the server's where it says them (usage, timings), else what was seen here."""

    def __init__(self, response: httpx2.Response, start: float) -> None:
        super().__init__(Splitter(KNOWN[0]))
        self.stats = Stats()
        self._reason: str | None = None
        self.yuan: float | None = None
        self._response = response
        self._start = start
        self._pieces = self._run()

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, as the server says it."""
        return self._reason

    def __iter__(self) -> Iterator[Said]:
        return self._pieces

    def close(self) -> None:
        """End the answer early: a closed connection is how the server learns of it."""
        self._pieces.close()
        self._heard(self._splitter.finish())
        self._response.close()

    def _run(self) -> Generator[Said, None, None]:
        try:
            yield from self._read()
        except (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError) as error:
            why = " ".join(str(e) for e in causes(error))[:SHOWN]
            raise RemoteError(f"the answer broke off: {why or type(error).__name__}") from None

    def _read(self) -> Generator[Said, None, None]:
        if "text/event-stream" not in self._response.headers.get("content-type", ""):
            yield from self._take(parse(read_body(self._response)))  # a server that does not stream
            yield from self._end()
            return
        for data in events(self._response.iter_bytes()):
            if data.strip() == "[DONE]":
                yield from self._end()
                return
            yield from self._take(parse(data))
        if self._reason is None:
            raise RemoteError("the answer broke off: the server closed the connection before its end")
        yield from self._end()

    def _take(self, chunk: Any) -> Iterator[Said]:
        """The text of one chunk; everything in it may be missing or null."""
        if not isinstance(chunk, dict):
            raise RemoteError(f"the server sent something that is not an answer: {json.dumps(chunk)[:SHOWN]}")
        if chunk.get("error"):
            raise RemoteError(f"the server broke off: {said_in(json.dumps(chunk).encode())[0]}")
        self._count(chunk.get("usage"), chunk.get("timings"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self._reason = choice.get("finish_reason") or self._reason
        said = choice.get("delta") or choice.get("message")
        if not isinstance(said, dict):
            return
        thought, words = texts_of(said)
        if thought or words:
            self._tick()
        yield from self._heard([*([Said(thought, thought=True)] if thought else []), *self._splitter.push(words)])

    def _tick(self) -> None:
        """A chunk came: without the server's own counts, one is taken for one token."""
        since = time.perf_counter() - self._start
        if not self.stats.ttft_s:
            self.stats.ttft_s = since
        else:
            self.stats.decode_steps += 1
        self.stats.completion_tokens += 1
        self.stats.decode_s = since - self.stats.ttft_s

    def _count(self, usage: Any, timings: Any) -> None:
        if isinstance(usage, dict):
            self.stats.prompt_tokens = whole_number(usage, "prompt_tokens", self.stats.prompt_tokens)
            self.stats.completion_tokens = whole_number(usage, "completion_tokens", self.stats.completion_tokens)
            self.stats.decode_steps = max(0, self.stats.completion_tokens - 1)
            self.stats.cached_tokens = whole_number(usage.get("prompt_tokens_details"), "cached_tokens", 0)
        if isinstance(timings, dict):
            yuan = timings.get("yuan")
            if isinstance(yuan, int | float) and math.isfinite(yuan) and yuan >= 0:
                self.yuan = float(yuan)
            self.stats.drafted = whole_number(timings, "drafted", whole_number(timings, "draft_n", 0))
            self.stats.accepted = whole_number(timings, "accepted", whole_number(timings, "draft_n_accepted", 0))
            # Network and client out of the figure: ours says decode_tps, llama.cpp predicted_per_second.
            speed = timings.get("decode_tps", timings.get("predicted_per_second"))
            if isinstance(speed, int | float) and math.isfinite(speed) and speed > 0 and self.stats.decode_steps:
                self.stats.decode_s = self.stats.decode_steps / speed

    def _end(self) -> Iterator[Said]:
        self._response.close()
        yield from self._heard(self._splitter.finish())
