"""A GGUF file in our engine to talk with: conversations through its own template, many at a time through the scheduler."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gangpao.engine.answer import Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Handle, Request, Scheduler
from gangpao.evaluate.models.protocol import Generated, Prompt
from gangpao.evaluate.results import ModelFacts
from gangpao.text.thoughts import split

_Events = queue.SimpleQueue[tuple[int, Piece | Exception]]


class EngineChat:
    """See asked.Chats. batch: conversations at a time. Close it when done."""

    def __init__(self, engine: Engine, facts: ModelFacts, batch: int) -> None:
        self.engine, self.facts = engine, facts
        self._scheduler = Scheduler(engine, batch=batch, queue=batch)

    @classmethod
    def load(cls, path: Path, batch: int) -> EngineChat:
        """The model of a file. Raises ValueError saying what to do."""
        engine = Engine.load(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts = ModelFacts(
            name=engine.name, kind="gguf", sha256=digest, bytes=path.stat().st_size, context=engine.context,
            architecture=engine.model.config.architecture,
        )  # fmt: skip
        return cls(engine, facts, batch)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the set-up changes answers."""
        return {"context": self.engine.context, "kv": self.engine.kv_dtype}

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """(number of the prompt, answer) as they are done."""
        ended: _Events = queue.SimpleQueue()
        running: dict[int, tuple[Handle, list[int]]] = {}
        waiting = list(enumerate(prompts))[::-1]
        while waiting or running:
            while waiting and not self._scheduler.full():
                number, prompt = waiting.pop()
                ids = self._ids(prompt)
                if len(ids) >= self.engine.context:
                    yield number, Generated("", "too_long", prompt_tokens=len(ids))
                else:
                    running[number] = self._submit(number, prompt, ids, ended), ids
            if running:
                number, event = ended.get()
                if isinstance(event, Exception):
                    raise event
                if event.finish_reason is not None:
                    yield number, self._generated(*running.pop(number))

    def _ids(self, prompt: Prompt) -> list[int]:
        switch = {} if prompt.think is None else {"enable_thinking": prompt.think, "thinking": prompt.think}
        messages: Any = list(prompt.messages or ())
        return self.engine.template.encode(self.engine.tokenizer, messages, variables=switch)

    def _submit(self, number: int, prompt: Prompt, ids: list[int], ended: _Events) -> Handle:
        params = SamplingParams(
            temperature=prompt.temperature, top_p=prompt.top_p, seed=prompt.seed or 0, max_tokens=prompt.max_tokens,
            stop=tuple(prompt.stop),
        )  # fmt: skip
        request = Request(ids, params, stop=self.engine.template.stop, client=str(number))
        return self._scheduler.submit(request, lambda event: ended.put((number, event)))

    def _generated(self, handle: Handle, ids: list[int]) -> Generated:
        splitter = self.engine.splitter(ids)
        thought, text = split(handle.text, splitter)
        tokens, finish = handle.stats.completion_tokens, handle.finish_reason or ""
        size = len(thought.encode()), len(text.encode())
        share = size[0] / sum(size) if thought else 0.0
        return Generated(
            text, finish, tokens, len(ids), thought, round(tokens * share),
            in_thought=splitter.thinking and finish == "length",
        )  # fmt: skip

    def close(self) -> None:
        """End the scheduler's thread."""
        self._scheduler.close()
