"""Judges asked: each answer by itself, or beside a baseline's in both orders; a verdict that is missing is asked for once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gangpao.evaluate.asked import OnAnswer, ask, key_for
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.judge.prompts import Prompts
from gangpao.evaluate.judge.questions import Question
from gangpao.evaluate.judge.talk import Answers
from gangpao.evaluate.judge.verdict import degree_of, letter_of, mark_of
from gangpao.evaluate.models.protocol import Generated, Model, Prompt

Kind = Literal["single", "pair", "arena"]
Baseline = Mapping[str, Sequence[str]]
_READERS: dict[Kind, Callable[[str], float | None]] = {"single": mark_of, "pair": letter_of, "arena": degree_of}


@dataclass(frozen=True, slots=True)
class Asking:
    """One thing to ask a judge. turn from 1. swapped: the baseline's answer stands first."""

    question: Question
    turn: int
    swapped: bool
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a judge said. value: a mark; or, of two answers, above 0 where the model's is better; None where there is none, and
    then `missing` says why. again: it had to be asked twice. answers: what it wrote, one or two texts."""

    asking: Asking
    value: float | None
    answers: tuple[Generated, ...]
    missing: str = ""

    @property
    def text(self) -> str:
        """All that it wrote."""
        return "\n\n".join(answer.text for answer in self.answers)

    @property
    def again(self) -> bool:
        """Whether it was asked a second time."""
        return len(self.answers) > 1


def askings(
    kind: Kind,
    questions: Sequence[Question],
    answers: Answers,
    baseline: Baseline | None,
    prompts: Prompts,
    *,
    max_tokens: int,
    temperature: float,
) -> list[Asking]:
    """Everything that a judge is asked: each turn, and each of them twice where two answers are compared."""
    asked = []
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            for swapped in (False,) if kind == "single" else (False, True):
                section = prompts.named(kind, second=turn == 2, reference=bool(question.reference))
                texts = _texts(
                    question, [a.text for a in answers[question.id]], (baseline or {}).get(question.id), swapped
                )
                prompt = Prompt(messages=section.messages(texts), max_tokens=max_tokens, temperature=temperature)
                asked.append(Asking(question, turn, swapped, prompt))
    return asked


def _texts(question: Question, mine: Sequence[str], other: Sequence[str] | None, swapped: bool) -> dict[str, str]:
    """What stands in the places of a section."""
    first, second = (other or (), mine) if swapped else (mine, other or ())
    rows = {
        "question": question.turns, "ref_answer": question.reference, "answer": mine, "answer_a": first, "answer_b": second,
    }  # fmt: skip
    return {f"{name}_{turn}": text for name, texts in rows.items() for turn, text in enumerate(texts, 1)}


def judge(
    model: Model, kind: Kind, asked: Sequence[Asking], prompts: Prompts, journal: Journal, on_answer: OnAnswer
) -> list[Judgment]:
    """The judgments, in the order of what is asked. Those that an earlier run ended without a verdict are asked for anew: the judge
    may have been repaired since."""
    read = _READERS[kind]
    words = {"single": prompts.again.mark, "pair": prompts.again.letter, "arena": prompts.again.degree}[kind]
    _forget_silent(model, asked, words, read, journal)
    first = ask(model, [one.prompt for one in asked], journal, on_answer)
    values = [read(answer.text) for answer in first]
    silent = [i for i, value in enumerate(values) if value is None and first[i].finish != "too_long"]
    second = ask(model, [_again(asked[i].prompt, first[i].text, words) for i in silent], journal, on_answer)
    repeated = dict(zip(silent, second, strict=True))
    return [
        _judgment(one, answer, value, repeated.get(i), read)
        for i, (one, answer, value) in enumerate(zip(asked, first, values, strict=True))
    ]


def _forget_silent(
    model: Model, asked: Sequence[Asking], words: str, read: Callable[[str], float | None], journal: Journal
) -> None:
    """Take out of the journal what was asked for twice and has no verdict."""
    for one in asked:
        first = key_for(model, one.prompt)
        answer = journal.take(first, Generated.stored)
        if answer is None or read(answer.text) is not None:
            continue
        second = key_for(model, _again(one.prompt, answer.text, words))
        repeated = journal.take(second, Generated.stored)
        if repeated is not None and read(repeated.text) is None:
            journal.forget(first, second)


def _again(prompt: Prompt, said: str, words: str) -> Prompt:
    """The same conversation, gone on with: at temperature 0 the same question would bring the same answer."""
    messages = [*(prompt.messages or ()), {"role": "assistant", "content": said}, {"role": "user", "content": words}]
    return replace(prompt, messages=messages)


def _judgment(
    asking: Asking,
    answer: Generated,
    value: float | None,
    repeated: Generated | None,
    read: Callable[[str], float | None],
) -> Judgment:
    if repeated is not None:
        value = read(repeated.text)
    missing = "" if value is not None else "judge_too_long" if answer.finish == "too_long" else "no_verdict"
    if value is not None and asking.swapped:
        value = -value
    return Judgment(asking, value, (answer,) if repeated is None else (answer, repeated), missing)
