"""Which part of a solution is the answer, and when two answers are the same."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.evaluate.graders import latex, maths, values

# answer, reference, flexible, strict
GSM8K = [
    ("She has 3 + 4 = 7.\n#### 7", "#### 7", True, True),
    ("#### 7\n\nQuestion: 9", "#### 7", True, True),
    ("The answer is 18.", "18", True, False),
    ("so $18.00", "18", True, False),
    ("#### $1,234.50", "#### 1,234.5", True, True),
    ("#### 1234", "#### 1,234", True, True),
    ("#### 1,234,567 dollars", "1234567", True, True),
    ("#### -5", "#### -5", True, True),
    ("#### −5", "#### -5", True, True),
    ("the loss is -$5", "-5", True, False),
    ("10-5", "5", True, False),
    ("it is 10 - 5", "5", True, False),
    ("#### 20%", "20", True, True),
    ("He counts 1, 2, ...", "2", True, False),
    ("It is 12...", "12", True, False),
    ("...", "0", False, False),
    ("", "0", False, False),
    ("$", "0", False, False),
    (",", "0", False, False),
    ("I do not know.", "1", False, False),
    (r"\boxed{42} because 6 x 7, see page 3", "42", True, False),
    (r"$\boxed{1{,}234}$ in 2 steps", "1234", True, False),
    (r"\boxed{\$18} a day, 7 days", "18", True, False),
    (r"\boxed{\frac{1}{2}}", "0.5", True, False),
    ("The answer is 3/4", "0.75", True, False),
    ("**Answer: 18**", "18", True, False),
    ("**18**", "18", True, False),
    ("18.", "18", True, False),
    ("18.0", "18", True, False),
    (".5", "0.5", True, False),
    ("the answer is 18 (eighteen)", "18", True, False),
    ("1.2.3", "3", False, False),
    ("Apollo11", "11", False, False),
    ("x2", "2", False, False),
    ("答案是 18。", "18", True, False),
    ("答案是１８元。", "18", True, False),
    ("一共１，２３４元", "1234", True, False),
    ("共3.5万元", "35000", True, False),
    ("共 2 亿", "200000000", True, False),
    ("答：18个苹果。", "18", True, False),
    ("5千克", "5", True, False),
    ("12,34", "34", True, False),
    ("1,2345", "2345", True, False),
    ("17", "18", False, False),
    ("#### 17\nno, 18", "18", False, False),
    ("####", "18", False, False),
    ("#### none, but 18", "18", True, True),
    ("9" * 500, "18", False, False),
]


@pytest.mark.parametrize(("answer", "reference", "flexible", "strict"), GSM8K)
def test_gsm8k(answer: str, reference: str, flexible: bool, strict: bool) -> None:
    assert maths.gsm8k(answer, reference).correct is flexible, maths.gsm8k(answer, reference)
    assert maths.gsm8k(answer, reference, strict=True).correct is strict


def test_an_answer_without_a_number_has_none() -> None:
    assert maths.gsm8k("...", "1").extracted is None
    assert maths.gsm8k("it is 5", "5", strict=True).extracted is None
    assert maths.gsm8k("it is $1,005 now", "5").extracted == "$1,005"
    with pytest.raises(ValueError, match="no number in the reference"):
        maths.gsm8k("1", "#### none")


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{:,}", "{}", "{}.00", "${:,}", "{}.", "**{}**", "{} dollars", "约{}个"]),
)
@settings(deadline=None, max_examples=60)
def test_a_number_is_read_as_it_was_written(value: int, form: str) -> None:
    text = form.format(value)
    assert [v for _, v in maths.numbers(text)] == [Fraction(value)]


SAME = [
    ("1/2", r"\frac12"),
    ("0.5", r"\frac{1}{2}"),
    (r"\dfrac{1}{2}", r"\tfrac12"),
    (r"\frac1{2}", r"\frac{1}2"),
    (".5", "0.5"),
    ("10,000", "10000"),
    (r"10{,}000", "10000"),
    (r"18,\!107", "18107"),
    ("5.0", "5"),
    ("+5", "5"),
    ("５", "5"),
    (r"3\frac{3}{8}", r"\frac{27}{8}"),
    ("3 3/8", r"3 \frac{3}{8}"),
    (r"-1\frac{1}{2}", "-1.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"60^\circ", "60"),
    (r"60^{\circ}", "60°"),
    ("60 degrees", r"60^\circ"),
    (r"28\%", "28"),
    ("28%", r"28\%"),
    (r"\$32", "32"),
    (r"5\text{ cm}", "5"),
    (r"440\text{ cm}^2", "440"),
    ("5 cm", r"5 \text{ cm}"),
    (r"864 \mbox{ inches}^2", "864 square inches"),
    (r"99\pi \text{ square inches}", r"99\pi"),
    ("5厘米", "5"),
    (r"10\;\text{edges}", "10"),
    ("12 units", "12"),
    (r"\sqrt{50}", r"5\sqrt{2}"),
    (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{8}", "2"),
    ("√2", r"\sqrt{2}"),
    ("sqrt(2)", r"\sqrt{2}"),
    (r"2\sqrt3", r"\sqrt{3}\cdot 2"),
    (r"6+\sqrt6", r"\sqrt{6} + 6"),
    (r"\pi r^2", "r^2π"),
    ("2*x+2", "2(x+1)"),
    ("a^3+a^2", "a^2(a+1)"),
    (r"(x-1)(x+1)", "x^2-1"),
    ("2^{10}", "1024"),
    ("2^10", "1024"),
    ("-15 + 8i", "8i-15"),
    (r"e^{i\pi}", "-1"),
    (r"\sin 30^{\circ}x", r"\sin(30x)"),
    (r"\sin^2 x + \cos^2 x", "1"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\log_2 8", "3"),
    (r"\ln e", "1"),
    ("|x|", r"|-x|"),
    (r"0.\overline{3}", r"\frac13"),
    (r"\tan\frac{\pi}{4}", "1"),
    ("(1, 2)", "(1,2)"),
    (r"\left(\frac12, 3\right)", "(0.5,3)"),
    (r"(-\infty, 3]", r"(-infinity,3]"),
    (r"[2,\infty)", "[2,∞)"),
    (r"(-\infty,0)\cup(1,2)", r"(1,2) \cup (-\infty, 0)"),
    (r"\{1,2\}", r"\{2, 1\}"),
    ("1,2,3", "3, 2, 1"),
    ("1 and 2", "1, 2"),
    (r"7, -2, \text{ and } -5", "-5,-2,7"),
    (r"1 \pm \sqrt2", r"1-\sqrt2, 1+\sqrt2"),
    (r"x = 2 \pm 1", "3, 1"),
    (r"\pm 2", "-2,2"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\begin{pmatrix} 1/2 \\ -1 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ -1 \\ \end{pmatrix}"),
    ("x = 5", "5"),
    ("x=5", "x = 5"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("y = 2x + 3", "y=3+2x"),
    ("f(x) = x^2", "x^2"),
    ("y=2x", "2x"),
    ("x^2 + y^2 = 13", "13 = y^2+x^2"),
    ("2x - y = 4", "y = 2x - 4"),
    ("4x-5y=-50", "5y - 4x = 50"),
    ("x < 5", "5 > x"),
    (r"x \leq 5", "x≤5"),
    (r"\text{odd}", "odd"),
    (r"\text{(B)}", "(B)"),
    (r"\text{(B)}", "B"),
    (r"\textbf{D}", "D"),
    (r"\text{C, E}", "E,C"),
    ("East", r"\text{east}"),
    (r"\text{4:30 p.m.}", "4:30 p.m."),
    ("443_5", "443_{5}"),
    (r"\mathbf{12}", "12"),
    ("$5$", "5"),
    (r"\(5\)", "5"),
    ("5.", "5"),
    ("((1+2))", "3"),
    (r"-2x^2+x-3", "x - 3 - 2x^2"),
    (r"\frac{x+1}{2}", "(x+1)/2"),
    (r"32R^2 - 3(a^2 + b^2 + c^2)", "32R^2-3a^2-3b^2-3c^2"),
    (r"\displaystyle\frac{4}{9}", r"\frac49"),
    ("1.50", r"\$1.5"),
    (r"\frac{3}{4}\pi\text{ inches}", r"\frac{3\pi}{4}"),
]  # fmt: skip

DIFFERENT = [
    ("1/3", "0.33"),
    ("0.333333", r"\frac13"),
    (r"28\%", "0.28"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "1,2"),
    ("[1,2)", "[1,2]"),
    (r"\{1,2\}", "(1,2)"),
    ("1,2", "1,2,3"),
    ("1,1,2", "1,2,2"),
    ("x=5", "y=5"),
    ("5", "-5"),
    ("12", "1 2"),
    ("1 2", "2"),
    ("", "5"),
    ("", ""),
    ("east", "seat"),
    ("yes", "no"),
    (r"\text{even}", r"\text{odd}"),
    ("443_5", "443_6"),
    ("443_5", "443"),
    ("x<5", "x>5"),
    (r"x \le 5", "x < 5"),
    ("x^2=1", "x=1"),
    ("2x+1", "2x+2"),
    ("x+y", "x-y"),
    ("ab", "ac"),
    ("a+b", "a+c"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"1 \pm 2", "3"),
    (r"1\pm 2", r"1 \pm 3"),
    ("2^{100}", "2^{100}+1"),
    ("10^{15}+1", "10^{15}"),
    (r"\sqrt{x^2}", "x"),
    ("1/0", "2/0"),
    (r"\frac{0}{0}", "0"),
    ("(0,1)", r"(0,1)\cup(2,3)"),
    ("3.14", r"\pi"),
    (r"\frac{22}{7}", r"\pi"),
    ("12,34", "1234"),
    ("A", "B"),
    ("(", ")"),
    ("{", "5"),
    ("\\", "/"),
    ("^", "^2"),
    (r"45^\circ, 135^\circ", "45135"),
    ("(1,234)", "(1234)"),
    ("-1,2", "1,-2"),
    ("5 cm", "6 cm"),
    ("1e5", "100000"),
    ("x=5", "x=-5"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SAME)
def test_the_same_written_otherwise(left: str, right: str) -> None:
    assert values.same(left, right), (values.clean(left), values.clean(right))
    assert values.same(right, left)
    assert values.same(left, left)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_what_is_not_the_same(left: str, right: str) -> None:
    assert not values.same(left, right), (values.clean(left), values.clean(right))
    assert not values.same(right, left)


BOXES = [
    (r"so \boxed{5}", "5"),
    (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{1} or \boxed{2}", "2"),
    (r"\fbox{7}", "7"),
    (r"\boxed 5", "5"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{a", None),
    (r"\boxed{1} then \boxed{2", "1"),
    (r"\boxed", None),
    ("", None),
    (r"\boxed {3}", "3"),
    (r"\boxed{\text{x}}}", r"\text{x}"),
    (r"\boxed{}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "inside"), BOXES)
def test_the_box(text: str, inside: str | None) -> None:
    assert maths.boxed(text) == inside


SOLUTIONS = [
    (r"Thus $x=\boxed{5}$.", "5"),
    (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", "0.5"),
    ("Final Answer: The final answer is 3. I hope it is correct.", "3"),
    ("The final answer is $90\\text{ square\nunits}$. I hope it is correct.", "90"),
    ("The answer is 12.", "12"),
    ("The answer is 12.5. That is all.", "12.5"),
    ("The answer is: **12**", "12"),
    ("The answer is\n\n$$12$$", "12"),
    (r"The answer is \(12\).", "12"),
    (r"**Answer:** $12$ apples", "12"),
    ("The answer is $1$ and $2$.", "1,2"),
    (r"所以答案是 $\frac{3}{4}$。", "3/4"),
    ("答案：12", "12"),
    ("答案为12个。", "12"),
    ("First the answer is 3. No: the answer is 4.", "4"),
    (r"We get $x^2 = 4$ and so $x = 2$.", "2"),
]


@pytest.mark.parametrize(("text", "reference"), SOLUTIONS)
def test_the_answer_in_a_solution(text: str, reference: str) -> None:
    grade = maths.math(text, reference)
    assert grade.correct, grade


def test_no_answer_is_none() -> None:
    assert maths.math("I do not know", "5").extracted is None
    assert not maths.math("", "5").correct
    assert maths.math(r"\boxed{6}", r"So \boxed{5}").why == "the answer in the box is not 5"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "9" * 10_000,
        "{" * 390,
        "-" * 390,
        "9^9^9^9^9",
        "((9!)!)!",
        "2^{99999999}",
        "1," * 199,
        r"\frac" * 70,
        "a_" * 190,
        r"\sqrt" * 60 + "2",
        "|" * 399,
        "x" * 399,
        r"\binom{999}{500}^{999}",
        r"\begin{pmatrix}" * 20,
        "1" + "+1" * 190,
        "\x00",
        "\ud800",
    ],
)
def test_hostile_texts_end_soon(text: str) -> None:
    began = time.process_time()
    assert not values.same(text, "7")
    assert values.same(text, text) or text in ("\x00",)
    maths.math(text, "7")
    maths.gsm8k(text, "7")
    assert time.process_time() - began < 2


@given(st.text("0123456789xy+-*/^(){}[]\\frac sqrt,.=|!_&<", max_size=60))
@settings(deadline=None, max_examples=80)
def test_any_text_can_be_compared(text: str) -> None:
    assert values.same(text, text) is bool(values._bare(values.clean(text)))
    values.same(text, r"\frac{1}{2}")


@given(st.recursive(st.integers(-9, 9), lambda s: st.tuples(st.sampled_from("+-*/"), s, s), max_leaves=8))
@settings(deadline=None, max_examples=40)
def test_exact_values_are_those_of_fractions(tree: object) -> None:
    def text(node: object) -> str:
        return f"({text(node[1])}){node[0]}({text(node[2])})" if isinstance(node, tuple) else str(node)

    def value(node: object) -> Fraction:
        if not isinstance(node, tuple):
            return Fraction(str(node))
        a, b = value(node[1]), value(node[2])
        return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[node[0]]()

    try:
        expected = value(tree)
    except ZeroDivisionError:
        return
    assert latex.exact(latex.parse(text(tree))) == expected
