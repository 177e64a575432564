"""The letter of an answer as small models write them."""

import time

import pytest

from gangpao.evaluate.graders import choice

ANSWERS: list[tuple[str, str | None]] = [
    ("B", "B"), ("B.", "B"), ("(B)", "B"), ("b", None), ("**D**", "D"), ("`C`", "C"), ("$B$", "B"), (" B\n", "B"),
    ("[A]", "A"),
    ("A. Paris", "A"), ("A) Paris", "A"), ("A: Paris", "A"), ("(A) Paris", "A"), ("**A. Paris**", "A"),
    ("A、巴黎", "A"), ("A．巴黎", "A"),
    ("A。", "A"), ("Ｂ", "B"), ("（Ｂ）", "B"), ("D 因为它最大", "D"), ("B\n\nBecause A is too small.", "B"),
    ("Option C", "C"),
    ("Option C: Paris", "C"), ("选项C", "C"), ("答：B", "B"), ("答B。", "B"),
    ("The answer is B.", "B"), ("The answer is (B).", "B"), ("The answer is: B", "B"), ("The answer is **B**.", "B"),
    ("Answer: C", "C"),
    ("**Answer:** C", "C"), ("ANSWER: D", "D"), ("The correct answer is option A.", "A"),
    ("The correct answer is A) Paris.", "A"),
    ("The correct option is D because ...", "D"), ("So the best choice is C.", "C"),
    ("The answer to the question is B.", "B"),
    ("I would choose C.", "C"), ("I'd go with option D.", "D"), ("The right answer would be B: it grows.", "B"),
    ("Final answer: D", "D"),
    ("C is the correct answer.", "C"), ("(C) is correct.", "C"), ("I think (D) fits.", "D"),
    (r"Thus \boxed{B}.", "B"),
    (r"$\boxed{\text{C}}$", "C"), ("The answer is 'A'.", "A"), ("the answer is B, since A is wrong", "B"),
    ("答案是A", "A"), ("答案是 A。", "A"), ("答案：B", "B"), ("答案: B", "B"), ("答案为C。", "C"), ("答案选D", "D"),
    ("正确答案是：B。", "B"),
    ("正确答案是选项B。", "B"), ("正确选项是C", "C"), ("选B", "B"), ("选 B。", "B"), ("故选C。", "C"),
    ("所以选D", "D"), ("因此，选择A。", "A"),
    ("应选B", "B"), ("本题选A", "A"), ("我选择B。", "B"), ("答案是（B）。", "B"), ("答案是【C】", "C"),
    ("答案是“D”", "D"), ("B项正确", "B"),
    ("B选项是正确的。", "B"), ("B正确，A错误。", "B"), ("A项错误，B项错误，C项正确，D项错误。故选C。", "C"),
    ("因此答案是 **B**。", "B"),
    ("首先分析A。\n其次分析B。\n\nD", "D"), ("我认为应该是（C）", "C"), ("根据题意，答案应该是B。", "B"),
    ("答案应为D", "D"),
    ("Let us see. A is small. B is big.\n\nC", "C"), ("The answer is A. No, wait. The answer is B.", "B"),
    ("答案是A。不对，答案是C。", "C"),
    ("The answer is not A. The answer is D.", "D"), ("答案不是A，答案是B。", "B"),
    ("A和C", None), ("AC", None), ("A, C", None), ("答案是A和C", None), ("答案是ABD", None),
    ("The answer is A or B.", None), ("A or B", None),
    ("I cannot answer that.", None), ("抱歉，我无法回答这个问题。", None), ("", None), ("   ", None),
    ("As an AI model, I do not know.", None),
    ("A good question! I do not know.", None), ("All of the above", None), ("Because of the heat.", None),
    ("42", None), ("E", None),
    ("The answer is a good one.", None), ("The answer is A good one.", None),
    ("Options: (A) x (B) y (C) z (D) w", None), ("ABCD", None),
    ("It could be (A) but also (B).", None), ("The answer is Denmark.", None), ("答案是Apple", None),
    ("Beijing", None), ("C++ is a language", None),
    ("A: The capital is (B).", "A"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "letter"), ANSWERS)
def test_the_letter(answer: str, letter: str | None) -> None:
    found, why = choice.letter(answer)
    assert found == letter, why


def test_an_option_may_be_named_by_its_text() -> None:
    options = ["Paris", "London", "New London", "Rome"]
    assert choice.letter("Paris", options=options)[0] == "A"
    assert choice.letter("It is Rome.", options=options)[0] == "D"
    assert choice.letter("It is New London.", options=options)[0] == "C"
    assert choice.letter("London", options=options)[0] == "B"
    assert choice.letter("Paris or Rome", options=options)[0] is None
    assert choice.letter("Berlin", options=options)[0] is None
    assert (
        choice.letter("Let us look at each of them in turn and see.\n\n1. Paris" + " is old" * 9, options=options)[0]
        is None
    )
    assert choice.letter("北京", options=["上海", "北京", "广州", "深圳"])[0] == "B"


def test_other_letters() -> None:
    assert choice.letter("The answer is 3.", "1234")[0] == "3"
    assert choice.letter("E", "ABCDE")[0] == "E"
    assert choice.letter("答案是J", "ABCDEFGHIJ")[0] == "J"


def test_a_grade_says_what_was_found() -> None:
    right = choice.grade("答案是B", "B")
    assert (right.correct, right.extracted) == (True, "B")
    wrong = choice.grade("A和B", "B")
    assert (wrong.correct, wrong.extracted) == (False, None)
    assert "several letters: A, B" in wrong.why
    with pytest.raises(ValueError, match="none of ABCD"):
        choice.grade("A", "E")


def test_long_answers_end_soon() -> None:
    for piece in ("A", "答案", "The answer ", "(", " ", "选", "answer to ", "A, "):
        began = time.process_time()
        choice.letter(piece * (20_000 // len(piece)))
        assert time.process_time() - began < 2, piece
