"""Marks and verdicts in what judges write."""

import pytest

from gangpao.evaluate.judge.verdict import degree_of, letter_of, mark_of


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Mark: [[7]]", 7),
        ("[[7.5]]", 7.5),
        ("[[ 8 ]]", 8),
        ("**[[9]]**", 9),
        ("[[8/10]]", 8),
        ("[[8]]/10", 8),
        ("The form is [[4]]. The answer asks for [[10]]. Mark: [[2]]", 2),
        ("[[2]] or rather [[11]]", 2),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[100]]", None),
        ("[[-3]]", None),
        ("Mark: [7]", None),
        ("see note [1]. 7 of 10", None),
        ("[[rating]]", None),
        ("", None),
    ],
)
def test_mark(text, mark):
    assert mark_of(text) == mark


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[A]]", 1),
        ("[[B]]", -1),
        ("[[C]]", 0),
        ("not [[A]] but [[B]]", -1),
        ("A", None),
        ("[[D]]", None),
        ("[[A>B]]", None),
    ],
)
def test_letter(text, value):
    assert letter_of(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[A>>B]]", 2), ("[[A>B]]", 1), ("[[A=B]]", 0), ("[[B>A]]", -1), ("[[B>>A]]", -2), ("[[B=A]]", 0), ("[[ B >> A ]]", -2),
        ("[[A>B]] ... [[A=B]]", 0), ("[[A>A]]", None), ("[[A]]", None), ("A>B", None),
    ],
)  # fmt: skip
def test_degree(text, value):
    assert degree_of(text) == value
