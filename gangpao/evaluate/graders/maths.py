r"""Answers to GSM8K and MATH: which part of a text is the answer, and whether it is the reference's.

GSM8K. strict: the number behind `####`, nothing else. flexible: that one, else the one in the last `\boxed{}`, else the last number
of the text. A number has thousands separators, a currency, a percent sign, a full stop behind it, full-width digits or a Chinese
unit (3.5万 is 35000); `...` is none, and the last number of "1, 2, ..." is 2.

MATH. The last `\boxed{}`, else what follows "final answer is", "answer is", 答案是, else the last formula between dollar signs.
Compared by values.py.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from gangpao.evaluate.graders import values
from gangpao.evaluate.graders.grade import Grade

GSM8K_NAME, GSM8K_VERSION = "gangpao-gsm8k", 1
MATH_NAME, MATH_VERSION = "gangpao-math", 1
GSM8K_GRADER = f"{GSM8K_NAME} {GSM8K_VERSION}"
MATH_GRADER = f"{MATH_NAME} {MATH_VERSION}"

_MAX_DIGITS = 400
_MAX_BOXES = 30  # that are looked at, from the end
_UNITS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
# Digits with separators in threes, or digits; a fraction; never a part of a word, of another number or of an ellipsis.
_NUMBER = re.compile(
    r"(?P<sign>(?<![A-Za-z0-9_)\]}%])[-−–])?(?:[$€£¥￥]\s?)?(?<![A-Za-z0-9_.])"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:/(?P<under>[1-9]\d*)(?![\d/.]))?(?:\s?(?P<unit>[万萬亿億]))?",
)
_LATEX_NUMBER = re.compile(r"\\(?:[dt]?frac)\{(-?\d+)\}\{([1-9]\d*)\}")
_FINAL = re.compile(r"(?:final\s+answer|answer)\s*(?:is|=|:)|(?:答案|结果)\s*(?:是|为|:|：)", re.I)
_HOPE = re.compile(r"\.?\s*I hope it is correct\.?.*", re.I | re.S)
_DOLLARS = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$]{1,400}?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)


def _plain(text: str) -> str:
    r"""Half-width digits, thousands as 1,234 and no dollar signs of LaTeX: `1{,}234`, `1,\!234` and `\$5` are 1,234 and 5."""
    text = unicodedata.normalize("NFKC", text.replace("…", "..."))  # first: NFKC makes three full stops of it anyhow
    return re.sub(r"(?<=\d)(?:\{,\}|,\\!|,\s?\\,)(?=\d{3})", ",", text).replace(r"\$", "$").replace(r"\%", "%")


def _value(found: re.Match[str]) -> Fraction:
    value = Fraction(found["number"].replace(",", ""))
    if found["under"]:
        value /= int(found["under"])
    value *= _UNITS.get(found["unit"] or "", 1)
    return -value if found["sign"] else value


def numbers(text: str) -> list[tuple[str, Fraction]]:
    """Every number of a text as it is written and its value, in order."""
    plain = _LATEX_NUMBER.sub(r"\1/\2", _plain(text))
    return [
        (m.group().strip(), _value(m))
        for m in _NUMBER.finditer(plain)
        if len(m["number"]) + len(m["under"] or "") < _MAX_DIGITS
    ]


def boxed(text: str) -> str | None:
    r"""What is in the last `\boxed{...}` or `\fbox{...}`, braces within it counted; None where there is none or it does not end."""
    for found in reversed(list(re.finditer(r"\\f?boxed\s*|\\fbox\s*", text))[-_MAX_BOXES:]):
        rest = text[found.end() :]
        if not rest.startswith("{"):
            if one := re.match(r"\\?\w+", rest):
                return one.group()  # \boxed 5
            continue
        depth = 0
        for at, c in enumerate(rest):
            escaped = at > 0 and rest[at - 1] == "\\"
            depth += (c == "{" and not escaped) - (c == "}" and not escaped)
            if depth == 0:
                return rest[1:at].strip()
    return None


def gsm8k_reference(answer: str) -> Fraction:
    """The value of a reference answer, as published or its number alone. Raises ValueError where it holds none."""
    found = numbers(answer.rpartition("####")[2])
    if not found:
        raise ValueError(f"no number in the reference answer {answer[-60:]!r}; the row of the data set is damaged")
    return found[0][1]


def _after_marks(text: str) -> tuple[str, Fraction] | None:
    found = re.search(r"####\s*(?P<line>[^\n]*)", text)
    return next(iter(numbers(found["line"])), None) if found else None


def gsm8k(answer: str, reference: str, *, strict: bool = False) -> Grade:
    """An answer to GSM8K against its reference (`... #### 18`, or 18). Raises ValueError as gsm8k_reference does."""
    right = gsm8k_reference(reference)
    how, found = "the number behind ####", _after_marks(answer)
    if found is None and not strict:
        inside = numbers(boxed(answer) or "")
        everywhere = numbers(answer)
        how = "the number in the box" if inside else "the last number"
        found = next(reversed(inside or everywhere), None)
    if found is None:
        return Grade(False, None, "no number behind ####" if strict else "no number")
    correct = found[1] == right
    return Grade(correct, found[0], f"{how} is {'' if correct else 'not '}{_shown(right)}")


def _shown(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def _inner(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group).strip()


def math_answer(text: str) -> tuple[str, str] | None:
    """The answer in a solution and where it was found, or None."""
    if inside := boxed(text):
        return inside, "in the box"
    if said := list(_FINAL.finditer(text)):
        rest = text[said[-1].end() :].lstrip(" :：*\n")
        formula = _DOLLARS.match(rest)
        if formula and not re.match(r"\s*(?:\$|and\b|or\b|,|和|或|、)", rest[formula.end() :]):
            return _inner(formula), "behind 'answer is'"
        line = _HOPE.sub("", rest.partition("\n")[0]).strip(" *")
        sentence = re.split(r"。|(?<!\d)\.\s|\.$|\.\s(?=[A-Z])", line)[0].strip()
        if sentence:
            return sentence, "behind 'answer is'"
    if formulas := list(_DOLLARS.finditer(text)):
        return _inner(formulas[-1]), "the last formula"
    return None


def math(answer: str, reference: str) -> Grade:
    r"""An answer to MATH. reference: the answer alone, or a solution with its `\boxed{}`."""
    right = boxed(reference) or reference
    found = math_answer(answer)
    if found is None:
        return Grade(False, None, "no answer: no box, no 'answer is', no formula")
    correct = values.same(found[0], right)
    return Grade(correct, found[0], f"the answer {found[1]} is {'' if correct else 'not '}{right}")
