"""The model under test answers: every first question, then every second one with what it said before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gangpao.evaluate.asked import OnAnswer, ask
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.judge.questions import Question
from gangpao.evaluate.models.protocol import Generated, Model, Prompt
from gangpao.options import option

Answers = Mapping[str, Sequence[Generated]]  # by question, one a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the model answers. FastChat gives 1024 tokens."""

    max_tokens: int = option(1024, "Most tokens of an answer, its thought included.", 1)
    seed: int = option(0, "Of answers at a temperature above 0.", 0)
    think: bool | None = option(
        None, "Switch a model's thinking, where its template can.", flag="--think/--no-think", unset="the model's own"
    )


def turns_of(questions: Sequence[Question]) -> int:
    """Answers that the questions want."""
    return sum(len(question.turns) for question in questions)


def messages_of(question: Question, turn: int, answers: Sequence[Generated]) -> list[dict[str, str]]:
    """The conversation up to the question of a turn (from 0); thoughts are not sent back."""
    messages = []
    for before in range(turn):
        messages.append({"role": "user", "content": question.turns[before]})
        messages.append({"role": "assistant", "content": answers[before].text})
    return [*messages, {"role": "user", "content": question.turns[turn]}]


def converse(
    model: Model, questions: Sequence[Question], journal: Journal, manner: Manner, on_answer: OnAnswer
) -> dict[str, list[Generated]]:
    """What the model says, by question and turn, at the temperature that is published for the question's category."""
    answers: dict[str, list[Generated]] = {question.id: [] for question in questions}
    for turn in range(2):
        asked = [question for question in questions if len(question.turns) > turn]
        prompts = [
            Prompt(
                messages=messages_of(question, turn, answers[question.id]), max_tokens=manner.max_tokens,
                temperature=question.temperature, seed=manner.seed, think=manner.think,
            )
            for question in asked
        ]  # fmt: skip
        for question, answer in zip(asked, ask(model, prompts, journal, on_answer), strict=True):
            answers[question.id].append(answer)
    return answers
