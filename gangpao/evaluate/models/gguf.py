"""A GGUF file in our engine as a model under evaluation: choices through the scorer, answers through the scheduler.

Scores and answers have the same bits at every batch, in every order and on every machine (`engine/transformer.py`), so none of
that is among the settings that name a run.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gangpao.engine.answer import Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Handle, Request, Scheduler
from gangpao.engine.score import Scorer
from gangpao.evaluate.models.answer import ThoughtAndAnswer, prompt_ids, rule_for, variables_of
from gangpao.evaluate.models.protocol import Generated, Group, Prompt, Score, Usage
from gangpao.evaluate.models.tokens import encode_group, first_id, scores_of, windows
from gangpao.evaluate.results import ModelFacts

DEFAULT_BATCH = 8


class EngineModel:
    """See protocol.Model. batch: answers at a time. facts: what is known of the file; the context is the engine's. float32: as the
    engine was loaded; adapters: what is to be told of those that it uses."""

    renders = True

    def __init__(
        self,
        engine: Engine,
        facts: ModelFacts,
        batch: int = DEFAULT_BATCH,
        *,
        float32: bool = False,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.facts = facts.model_copy(update={"context": engine.context})
        self.usage = Usage()
        self._batch = batch
        self._float32 = float32
        self._adapters = dict(adapters or {})
        self._scorer: Scorer | None = None
        self._scheduler: Scheduler | None = None

    @property
    def thinks(self) -> bool:
        """Whether the file's template has thoughts."""
        return self.engine.template.thoughts is not None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the set-up changes scores."""
        tokenizer = self.engine.tokenizer
        return {
            "bos": "once in front" if tokenizer.adds_bos else "none",
            "context": self.engine.context,
            "kv": self.engine.kv_dtype,
            "computed_in": "float32" if self._float32 else "int8 where weights are of few bits",
            **({"adapters": self._adapters} if self._adapters else {}),
        }

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[Score]]]:
        """Contexts that begin alike are read one after the other, and what they share once."""
        encoded = [encode_group(self.engine.tokenizer, group, self.engine.context) for group in groups]
        order = sorted(range(len(groups)), key=lambda i: encoded[i].context)
        for i in order:
            if not encoded[i].endings:
                yield i, scores_of(encoded[i], [])
        order = [i for i in order if encoded[i].endings]
        self._scorer = self._scorer or Scorer(self.engine)
        stats = self._scorer.stats
        seen = stats.computed, stats.cached
        for number, found in self._scorer.score((encoded[i].context, encoded[i].endings) for i in order):
            self.usage.prompt += stats.computed - seen[0]
            self.usage.cached += stats.cached - seen[1]
            seen = stats.computed, stats.cached
            i = order[number]
            yield i, scores_of(encoded[i], [(score.total, score.greedy) for score in found])

    def roll(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """Windows of the whole context, as lm-eval has them."""
        tokenizer = self.engine.tokenizer
        begins = first_id(tokenizer, "a text cannot be scored from its beginning")
        self._scorer = self._scorer or Scorer(self.engine)
        for i, text in enumerate(texts):
            parts = windows(tokenizer.encode(text, parse_special=True), begins, self.engine.context)
            yield i, sum(found[0].total for _, found in self._scorer.score((w.context, [w.ending]) for w in parts))

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """The longest prompts first, so that the last steps are not those of one long answer alone; behind them those with pictures
        in their order, in which questions about one picture stand together."""
        ids = [self.ids_of(prompt) for prompt in prompts]
        self._scheduler = self._scheduler or Scheduler(self.engine, batch=self._batch, queue=self._batch)
        self._make_room(ids)
        ended: queue.SimpleQueue[_Writing | Exception] = queue.SimpleQueue()
        waiting = deque(sorted(range(len(prompts)), key=lambda i: (1, 0) if prompts[i].pictures else (0, -len(ids[i]))))
        under_way = 0
        while waiting or under_way:
            while waiting and not self._scheduler.full():
                i = waiting.popleft()
                if len(ids[i]) >= self.engine.context:
                    yield i, Generated("", "too_long", prompt_tokens=len(ids[i]))
                    continue
                _Writing(i, self.engine, self._scheduler, prompts[i], ids[i], ended)
                under_way += 1
            if under_way:
                done = ended.get()
                if isinstance(done, Exception):
                    raise done
                under_way -= 1
                stats = done.handle.stats
                self.usage.prompt += stats.prompt_tokens - stats.cached_tokens
                self.usage.cached += stats.cached_tokens
                self.usage.completion += stats.completion_tokens
                answer = done.generated()
                del done.handle  # the answer's pictures go with it
                yield done.number, answer

    def _make_room(self, ids: Sequence[Sequence[int]]) -> None:
        """For the pictures of as many answers as may be under way or wait."""
        seeing, vocab = self.engine.seeing, self.engine.model.config.vocab_size
        if seeing is not None and self._scheduler is not None:
            fitting = (one for one in ids if len(one) < self.engine.context)
            rows = max((sum(i >= vocab for i in one) for one in fitting), default=0)
            seeing.table.have_room((self._scheduler.places + 2) * rows)

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """By the file's own template."""
        return self.engine.template.render(list(messages))

    def ids_of(self, prompt: Prompt) -> list[int]:
        """As `generate` and `score` make them."""
        if prompt.pictures:
            return self.engine.prompt_with(list(prompt.messages or ()), prompt.pictures, variables=variables_of(prompt))
        return prompt_ids(self.engine.tokenizer, self.engine.template, prompt)

    def close(self) -> None:
        """End the scheduler's thread and give back the caches."""
        if self._scheduler is not None:
            self._scheduler.close()
        self._scheduler = self._scorer = None


class _Writing:
    """One answer on its way. Stop strings count in the answer, not in a thought."""

    def __init__(
        self,
        number: int,
        engine: Engine,
        scheduler: Scheduler,
        prompt: Prompt,
        ids: list[int],
        ended: queue.SimpleQueue[_Writing | Exception],
    ) -> None:
        self.number = number
        self._ended = ended
        self._answer = ThoughtAndAnswer(engine.splitter(ids), prompt.stop, thinks=engine.template.thoughts is not None)
        room = engine.context - len(ids)
        drawn: Mapping[str, Any] = {"temperature": prompt.temperature, "top_p": prompt.top_p, **prompt.sampling}
        params = SamplingParams(
            **drawn, seed=prompt.seed or 0, max_tokens=min(prompt.max_tokens, room), stop=self._answer.passed_on
        )
        chat = prompt.messages is not None
        marks = engine.template.stop if chat else ()
        rule = rule_for(engine.tokenizer, engine.template, prompt, ids)
        request = Request(
            ids, params, stop=marks, client=str(number), continues=not chat, thinking=rule,
            axes=engine.axes(ids, prompt.pictures.values()) if prompt.pictures else None,
            pictures=engine.see(prompt.pictures.values()) if prompt.pictures else None,
        )  # fmt: skip
        self._submitted = threading.Lock()  # the first piece may come before submit has returned
        with self._submitted:
            self.handle: Handle = scheduler.submit(request, self._on_event)

    def _on_event(self, event: Piece | Exception) -> None:
        if isinstance(event, Exception):
            self._ended.put(event)
            return
        if not self._answer.finish and self._answer.push(event):
            with self._submitted:
                if event.finish_reason is None:
                    self.handle.cancel()
            self._ended.put(self)

    def generated(self) -> Generated:
        stats = self.handle.stats
        return self._answer.generated(stats.completion_tokens, stats.prompt_tokens)
