"""Answers of BIG-Bench Hard in every form that its 27 tasks have."""

import pytest

from gangpao.evaluate.graders import bbh

KINDS = [
    ("(A)", "option"), ("(R)", "option"), ("True", "word"), ("False", "word"), ("Yes", "word"), ("no", "word"),
    ("invalid", "word"),
    ("valid", "word"), ("-113", "number"), ("9", "number"), (") ) >", "brackets"), ("]", "brackets"),
    ("abbas average zoo", "words"),
    ("Monsters, Inc", "text"), ("dearth, wind, & fire", "text"), ("oven", "words"),
]  # fmt: skip

SAID = [  # what follows "So the answer is", target, right
    ("(B).", "(B)", True), ("(B)", "(B)", True), ("B.", "(B)", True), ("B", "(B)", True), ("**(B)**.", "(B)", True),
    ("option (B).", "(B)", True),
    ("(B) 12/14/1937.", "(B)", True), ("B) yes", "(B)", True), ("(C).", "(B)", False), ("(B) or (C).", "(B)", False),
    ("Because.", "(B)", False),
    ("A good one.", "(A)", False), ("$(B)$", "(B)", True), ("（B）。", "(B)", True),
    ("12/14/1937, (B).", "(B)", True), ("Q.", "(Q)", True),
    ("(Q).", "(Q)", True),
    ("True.", "True", True), ("True", "True", True), ("true.", "True", True), ("False.", "True", False),
    ("not True.", "True", False),
    ("Yes.", "Yes", True), ("yes", "Yes", True), ("No.", "Yes", False), ("Yes, he did.", "Yes", True),
    ("plausible", "yes", False),
    ("not plausible.", "no", True), ("valid.", "valid", True), ("invalid.", "valid", False),
    ("invalid", "invalid", True),
    ("not valid.", "invalid", True), ("deductively valid.", "valid", True),
    ("that the argument is invalid.", "invalid", True),
    ("123.", "123", True), ("123", "123", True), ("-219.", "-219", True), ("−219.", "-219", True),
    ("219.", "-219", False), ("3,929.", "3929", True),
    ("12", "123", False), ("12 + 5 = 17.", "17", True), ("9 objects.", "9", True), ("9.0", "9", True),
    ("nine.", "9", False),
    ("] } ].", "] } ]", True), ("]}].", "] } ]", True), ("] }", "] } ]", False), ("] } ] >", "] } ]", False),
    ("`] } ]`", "] } ]", True),
    ("the sequence ].", "]", False), ("> >", "> >", True),
    ("costume counterpart oven.", "costume counterpart oven", True),
    ("costume, counterpart, oven.", "costume counterpart oven", True),
    ("Costume Counterpart Oven", "costume counterpart oven", True),
    ("costume oven counterpart.", "costume counterpart oven", False),
    ("costume counterpart ove", "costume counterpart oven", False), ("oven", "oven", True),
    ("it's oven", "it's oven", True),
    ("Monsters, Inc.", "Monsters, Inc", True), ("monsters, inc", "Monsters, Inc", True),
    ("dearth, wind, & fire.", "dearth, wind, & fire", True),
]  # fmt: skip


@pytest.mark.parametrize(("target", "kind"), KINDS)
def test_the_kind_of_a_target(target: str, kind: str) -> None:
    assert bbh.kind_of(target) == kind


@pytest.mark.parametrize(("said", "target", "right"), SAID)
def test_what_is_said_is_compared_as_the_target_is(said: str, target: str, right: bool) -> None:
    text = f"Let's think step by step. The answer is not clear: 7 (D) Yes.\nSo the answer is {said}"
    assert bbh.grade(text, target).correct is right, bbh.grade(text, target)
    assert bbh.grade(f"{text}\n\nQ: Another? So the answer is (Z) no 5.", target).correct is right
    assert bbh.grade(f" {said}\n", target, direct=True).correct is right


def test_nothing_is_cut_off() -> None:
    """lm-eval 0.4.13 would read `Tru`, `(B` and `12` here, as no full stop ends the answers."""
    assert [bbh.grade(f"So the answer is {t}", t).extracted for t in ("True", "(B)", "123")] == ["true", "(B)", "123"]
    assert bbh.grade("Quite so: Q is a letter. So the answer is (A).", "(A)").correct


def test_without_the_phrase_there_is_no_answer() -> None:
    assert bbh.grade("It is (A).", "(A)").extracted is None
    assert bbh.grade("", "(A)", direct=True).extracted is None
    assert bbh.grade("The answer is", "(A)").extracted is None
    assert bbh.grade("\n\nQ: So the answer is (A).", "(A)").extracted is None
    assert bbh.grade("(A)\nmore", "(A)", direct=True).correct
    assert bbh.grade("答案是 (A)。", "(A)").correct
    with pytest.raises(ValueError, match="empty target"):
        bbh.grade("x", " ")
