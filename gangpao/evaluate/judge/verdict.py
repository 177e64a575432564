r"""The mark in what a judge wrote.

A mark is a number from 1 to 10 in double brackets: [[7]], [[7.5]], [[7/10]]. A verdict is [[A]], [[B]] or [[C]] (a tie), or one
of [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]. The last well-formed one counts: judges repeat the form that they were asked for,
quote the answer they read (which may hold a mark that it would like to get) and weigh aloud, and say their own verdict at the end.
FastChat takes the first, takes [n] where there is no [[n]], so that a footnote counts, and does not look at the range.
"""

from __future__ import annotations

import re

_MARK = re.compile(r"\[\[\s*(\d{1,2}(?:\.\d+)?)\s*(?:/\s*10)?\s*\]\]")
_LETTER = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_DEGREE = re.compile(r"\[\[\s*([AB])\s*(>>|>|=)\s*([AB])\s*\]\]")
LOWEST, HIGHEST = 1.0, 10.0


def mark_of(text: str) -> float | None:
    """The mark, from 1 to 10; None where there is none."""
    marks = [float(found) for found in _MARK.findall(text)]
    return next((mark for mark in reversed(marks) if LOWEST <= mark <= HIGHEST), None)


def letter_of(text: str) -> int | None:
    """1 where A is better, -1 where B is, 0 for a tie; None where there is no verdict."""
    letters = _LETTER.findall(text)
    return {"A": 1, "B": -1, "C": 0}[letters[-1]] if letters else None


def degree_of(text: str) -> int | None:
    """2 where A is much better, 1 where it is better, 0 for a tie, -1 and -2 for B; None where there is no verdict."""
    found = [(a, sign, b) for a, sign, b in _DEGREE.findall(text) if a != b]
    if not found:
        return None
    winner, sign, _ = found[-1]
    return {">>": 2, ">": 1, "=": 0}[sign] * (1 if winner == "A" else -1)
