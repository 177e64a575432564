"""A thought is told apart from the answer, and stop strings count in the answer only."""

import pytest

from gangpao.engine.answer import Piece
from gangpao.evaluate.models.answer import ThoughtAndAnswer
from gangpao.text.thoughts import Marks, Splitter

MARKS = Marks("<think>", "</think>")


def written(texts, *, stop=(), thinks=True, last="stop"):
    answer = ThoughtAndAnswer(Splitter(MARKS if thinks else None), stop, thinks=thinks)
    for number, text in enumerate(texts, 1):
        reason = last if number == len(texts) else None
        if answer.push(Piece(text, ids=(number,), finish_reason=reason)):
            break
    return answer, number


def test_thought_and_answer_are_apart():
    answer, _ = written(["<think>", "\nso\n", "</think>", "\nSeven", "."])
    found = answer.generated(5, 2)
    assert (found.thinking, found.text, found.finish, found.in_thought) == ("so", "Seven.", "stop", False)
    assert (found.tokens, found.prompt_tokens, found.thinking_tokens) == (5, 2, 3)


def test_a_stop_string_in_a_thought_ends_nothing():
    answer, count = written(["<think>a\n\nb</think>", "one\n", "\ntwo", "three"], stop=["\n\n"])
    assert (answer.generated(3, 1).text, answer.finish, count) == ("one", "stop", 3)
    assert answer.passed_on == ()


def test_a_model_without_thoughts_leaves_stop_strings_to_the_writer():
    answer, count = written(["<think>a", " b"], stop=["a"], thinks=False)
    assert (answer.generated(2, 1).text, count, answer.passed_on) == ("<think>a b", 2, ("a",))


@pytest.mark.parametrize("last", ["length", "stop"])
def test_the_limit_within_a_thought_is_said(last):
    answer, _ = written(["<think>", "on and on"], last=last)
    assert answer.generated(2, 1).in_thought == (last == "length")
