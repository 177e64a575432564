"""Who gives GRPO's answers: our own engine with the very file that is tuned, and beside it the adapter as it stands.

Before every batch the adapter's weights go to the engine anew, so answers are those of the model of this moment. The engine rounds
activations to 8 bits and an adapter to int8, as it will when the model is used; training computes in floats on the same blocks.

What it gives up: the base is in memory twice, as its file for training and packed for the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gangpao.data.tokens.order import key_of
from gangpao.data.tokens.pack import Part
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Request, Scheduler
from gangpao.engine.sequences import Event
from gangpao.formats.adapters import Adapter
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.rewards import Reward, reward_of
from gangpao.tune.objectives.rollouts import Prompt, Rollouts

POLICY = "policy"  # the adapter's name in the engine
BATCH = 16  # answers that are written at once


def prompts_of(parts: Iterable[Any], tokenizer: Tokenizer) -> tuple[list[Prompt], int]:
    """The rows of prepared data as prompts: all up to a row's last answer, which is what is expected. And the id that ends a turn.

    Raises ValueError where a row has no answer to stand behind a prompt.
    """
    prompts, end = [], -1
    for part in parts:
        assert isinstance(part, Part)
        for number in range(part.shards.num_documents):
            ids, mask = part.shards.document(number), part.shards.document_mask(number)
            learned = np.flatnonzero(mask)
            begin = int(learned[-1]) + 1
            while begin > 0 and mask[begin - 1]:
                begin -= 1
            if not begin:
                raise ValueError(f"grpo: answer {number} of {part.name} has no prompt before it")
            answer = [int(i) for i in ids[begin : int(learned[-1]) + 1]]
            end = answer[-1]
            prompts.append(Prompt(tuple(int(i) for i in ids[:begin]), tokenizer.decode(answer).strip()))
    return prompts, end


class Answers:
    """The engine of a run. model: the GGUF file that is tuned; adapter(): its adapter as it stands; end: the id that ends a turn.

    The engine is loaded when the first answers are asked for. Raises ValueError for an adapter that it does not compute with.
    """

    def __init__(
        self,
        model: Path,
        adapter: Callable[[], Adapter],
        objective: ObjectiveConfig,
        *,
        longest: int,
        end: int,
        threads: int,
    ) -> None:
        self.model, self.adapter, self.objective = model, adapter, objective
        self.longest, self.end, self.threads = longest, end, threads
        self._engine: Engine | None = None

    def __call__(self, prompts: Sequence[Sequence[int]], answers: int, seed: int) -> list[list[list[int]]]:
        """Answers to each prompt, drawn from the whole distribution (gangpao.tune.objectives.rollouts.Generate)."""
        return self.ask(prompts, answers, seed, self.objective.temperature)

    def ask(
        self, prompts: Sequence[Sequence[int]], answers: int, seed: int, temperature: float
    ) -> list[list[list[int]]]:
        """The same at a temperature. An answer ends with `end` where the model ended it."""
        engine = self._current()
        scheduler = Scheduler(engine, batch=BATCH, queue=len(prompts) * answers)
        try:
            waiting = [
                _Waiting(scheduler, list(ids), self._params(temperature, key_of("answer", seed, i, k) % 2**31))
                for i, ids in enumerate(prompts)
                for k in range(answers)
            ]
            found = [one.ids(self.end) for one in waiting]
        finally:
            scheduler.close(finish=False)
        return [found[i : i + answers] for i in range(0, len(found), answers)]

    def _current(self) -> Engine:
        """The engine with the adapter of this moment."""
        if self._engine is None:
            context = self.longest + self.objective.max_answer_tokens
            self._engine = Engine.load(self.model, context=context, num_threads=self.threads)
            self._engine.model.add_adapter(POLICY, self.adapter())
            self._engine.use({POLICY: None})
        else:
            self._engine.model.replace_adapter(POLICY, self.adapter())
        return self._engine

    def _params(self, temperature: float, seed: int) -> SamplingParams:
        return SamplingParams(temperature=temperature, max_tokens=self.objective.max_answer_tokens, seed=seed)


class _Waiting:
    """One answer on its way."""

    def __init__(self, scheduler: Scheduler, prompt: list[int], params: SamplingParams) -> None:
        self._ids: list[int] = []
        self._error: Exception | None = None
        self._reason = ""
        self._ended = threading.Event()
        scheduler.submit(Request(prompt, params, speculate=False), self._take)

    def _take(self, event: Event) -> None:
        if isinstance(event, Exception):
            self._error = event
        else:
            self._ids += event.ids
            self._reason = event.finish_reason or ""
        if self._error or self._reason:
            self._ended.set()

    def ids(self, end: int) -> list[int]:
        self._ended.wait()
        if self._error:
            raise self._error
        return [*self._ids, end] if self._reason == "stop" else self._ids


def rollouts_of(
    prompts: Sequence[Prompt], answers: Answers, text: Callable[[list[int]], str], *, row_length: int, seed: int
) -> Callable[[dict[str, Any] | None], Rollouts]:
    """What makes the source of a run's batches, at its beginning or at a saved position."""
    objective = answers.objective

    def source(position: dict[str, Any] | None) -> Rollouts:
        made = Rollouts(
            prompts, answers, reward_of(objective.rewards), text, answers=objective.answers, scale=objective.advantages,
            row_length=row_length, seed=seed,
        )  # fmt: skip
        if position is not None:
            made.restore(position)
        return made

    return source


def heldout_reward(
    prompts: Sequence[Prompt], answers: Answers, reward: Reward, text: Callable[[list[int]], str]
) -> Callable[[Callable[[], bool]], dict[str, float] | None]:
    """An evaluation of a run: the mean reward of the likeliest answers to prompts that are held out; "heldout" is it times -1, so
    that less is better as for a loss."""

    def evaluate(stop: Callable[[], bool]) -> dict[str, float] | None:
        total = 0.0
        for begin in range(0, len(prompts), BATCH):
            if stop():
                return None
            some = prompts[begin : begin + BATCH]
            drawn = answers.ask([p.ids for p in some], 1, 0, temperature=0.0)
            total += sum(reward(text(group[0]), p.expected) for p, group in zip(some, drawn, strict=True))
        return {"heldout": -total / len(prompts), "heldout_reward": total / len(prompts)}

    return evaluate
