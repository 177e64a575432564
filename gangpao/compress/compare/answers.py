"""Whether a model's answers come to an end: greedy ones and drawn ones, their length, repetition, and thoughts that are closed.

Drawn answers use the sampling that the reference recommends, for all models, with the same seeds; a model that loops only when it
is greedy is another fault than one that never ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao.evaluate.asked import OnAnswer, ask
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.protocol import Generated, Model, Prompt
from gangpao.text.tokenizer import Tokenizer

How = Literal["greedy", "drawn"]
_NGRAM = 4
_LONGEST_PERIOD, _LEAST_LOOP = 64, 24  # ids of a block that repeats, and of its three repetitions together


@dataclass(frozen=True, slots=True)
class Asking:
    """messages: the conversations. drawn: answers to each besides the greedy one. sampling: of those, names of
    engine.sample.SamplingParams -> values. think: see Prompt."""

    messages: Sequence[Sequence[Mapping[str, object]]]
    max_tokens: int
    drawn: int
    sampling: Mapping[str, float]
    think: bool | None = None

    def prompts(self) -> list[tuple[How, int, Prompt]]:
        """How, the number of the conversation, and what is asked."""
        found: list[tuple[How, int, Prompt]] = []
        for number, messages in enumerate(self.messages):
            found.append(("greedy", number, Prompt(messages=messages, max_tokens=self.max_tokens, think=self.think)))
            for seed in range(self.drawn):
                one = Prompt(
                    messages=messages, max_tokens=self.max_tokens, think=self.think, seed=seed, sampling=self.sampling
                )
                found.append(("drawn", number, one))
        return found


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: to which conversation, how, and what of it is counted. ended: the model ended it itself; at_limit: the limit
    did. repeated: share of its 4-grams of ids that were there before; loops: its end is the same block three times. thought: there
    was one; closed: the limit did not come within it. same: ids of the reference's greedy answer that it begins with."""

    how: How
    number: int
    tokens: int
    ended: bool
    at_limit: bool
    repeated: float
    loops: bool
    thought: bool
    closed: bool
    empty: bool
    same: int | None
    text: str
    thinking: str


def answer(
    model: Model,
    asking: Asking,
    journal: Journal,
    tokenizer: Tokenizer,
    reference: Sequence[Said] | None,
    on_answer: OnAnswer,
) -> list[Said]:
    """Every answer, in the order of `prompts`. tokenizer: of the reference, in whose ids repetition and beginnings are counted."""
    asked = asking.prompts()
    found = ask(model, [prompt for _, _, prompt in asked], journal, on_answer)
    greedy = {said.number: said for said in reference or () if said.how == "greedy"}
    return [
        _said(how, number, one, tokenizer, greedy.get(number) if how == "greedy" else None)
        for (how, number, _), one in zip(asked, found, strict=True)
    ]


def _said(how: How, number: int, one: Generated, tokenizer: Tokenizer, beside: Said | None) -> Said:
    ids = tokenizer.encode(one.thinking + one.text)
    same = None
    if beside is not None:
        same = common(ids, tokenizer.encode(beside.thinking + beside.text))
    thought = bool(one.thinking) or one.in_thought
    return Said(
        how, number, one.tokens, one.finish == "stop", one.finish == "length", repeated(ids), loops(ids), thought,
        thought and not one.in_thought, not one.text.strip(), same, one.text, one.thinking,
    )  # fmt: skip


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Ids with which both begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def repeated(ids: Sequence[int]) -> float:
    """Share of the 4-grams that were there before; 0 where there are none."""
    grams = [tuple(ids[i : i + _NGRAM]) for i in range(len(ids) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(ids: Sequence[int]) -> bool:
    """Whether the end is one block three times or oftener; a cut last block is left out."""
    for period in range(1, min(_LONGEST_PERIOD, len(ids) // 3) + 1):
        run = 0
        while run < len(ids) - period and ids[-1 - run] == ids[-1 - run - period]:
            run += 1
        if run >= 2 * period and run + period >= _LEAST_LOOP:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Summary:
    """Of answers of one kind. Counts of `asked`, except repeated, the mean of the shares; tokens, the mean; same, the median."""

    how: How
    asked: int
    ended: int
    at_limit: int
    tokens: float
    repeated: float
    loops: int
    thoughts: int
    closed: int
    empty: int
    same: float | None


def summaries(said: Sequence[Said]) -> list[Summary]:
    """Greedy ones, and drawn ones where there are any."""
    hows: tuple[How, ...] = ("greedy", "drawn")
    return [_summary(how, some) for how in hows if (some := [one for one in said if one.how == how])]


def _summary(how: How, said: Sequence[Said]) -> Summary:
    same = sorted(one.same for one in said if one.same is not None)
    middle = (same[(len(same) - 1) // 2] + same[len(same) // 2]) / 2 if same else None
    return Summary(
        how, len(said), sum(s.ended for s in said), sum(s.at_limit for s in said),
        math.fsum(s.tokens for s in said) / len(said), math.fsum(s.repeated for s in said) / len(said),
        sum(s.loops for s in said), sum(s.thought for s in said), sum(s.closed for s in said), sum(s.empty for s in said), middle,
    )  # fmt: skip
