"""What every experiment decides by: an interval against the values for which the answer is yes.

The answer is yes where all of the 95 % interval lies within those values, no where none of it does, and "cannot tell" where
the interval holds values of both kinds, or nothing tells how wide it is. So no estimate is called a result by its middle.

What it gives up: each question is judged by itself; of twenty sure answers one may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Answer = Literal["yes", "no", "cannot tell"]
Limits = tuple[float, float]

UNKNOWN: Limits = (-math.inf, math.inf)  # the interval of what nothing tells
BELOW_ZERO: Limits = (-math.inf, 0.0)
WORDS: dict[Answer, tuple[str, str]] = {
    "yes": ("yes", "是"), "no": ("no", "否"), "cannot tell": ("cannot tell", "无法判断"),
}  # fmt: skip


def decide(low: float, high: float, allowed: Limits) -> Answer:
    """Yes where low .. high lies within allowed, no where it lies outside, else cannot tell; a NaN tells nothing."""
    least, most = allowed
    if least <= low and high <= most:
        return "yes"
    if high < least or low > most:
        return "no"
    return "cannot tell"


def about(value: float | None, error: float | None) -> Limits:
    """value ± error, half a 95 % interval; UNKNOWN where one of them is not known."""
    return UNKNOWN if value is None or error is None else (value - error, value + error)


def all_of(answers: Sequence[Answer]) -> Answer:
    """Yes where all are, no where one is, else cannot tell."""
    if "no" in answers:
        return "no"
    return "yes" if answers and set(answers) == {"yes"} else "cannot tell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question in English and Chinese, what was measured with its 95 % interval, and the values that mean yes.

    unit: written behind numbers, for example " %". The interval of a value without known noise is UNKNOWN.
    """

    question: tuple[str, str]
    value: float | None
    interval: Limits
    allowed: Limits
    unit: str = ""

    @property
    def answer(self) -> Answer:
        """See `decide`."""
        return decide(*self.interval, self.allowed)

    def json(self) -> dict[str, Any]:
        """Plain data; None for what is infinite."""
        low, high = (v if math.isfinite(v) else None for v in self.interval)
        least, most = (v if math.isfinite(v) else None for v in self.allowed)
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return {
            "question": {"en": self.question[0], "zh": self.question[1]}, "answer": self.answer, "value": value,
            "low": low, "high": high, "allowed": [least, most], "unit": self.unit,
        }  # fmt: skip

    def line(self) -> tuple[str, str]:
        """Question, answer and the numbers behind it."""
        (en, zh), answer = self.question, WORDS[self.answer]
        measured, limits = self._measured(), self._limits()
        numbers = [f"{m}; {w} {limit}" for m, w, limit in zip(measured, ("yes", "“是”的范围"), limits, strict=True)]
        return (
            f"{en} {answer[0].capitalize()} ({numbers[0]}).",
            f"{zh}{answer[1]}（{numbers[1].replace('; ', '；')}）。",
        )

    def _measured(self) -> tuple[str, str]:
        low, high = self.interval
        known = f"{span(low, high, '.3g')}{self.unit}"
        if self.value is None or not math.isfinite(self.value):
            return (
                ("not measured", "没有测得")
                if known.startswith("?")
                else (f"95 % interval {known}", f"95 % 区间 {known}")
            )
        value = f"{self.value:.3g}{self.unit}"
        if known.startswith("?"):
            return f"{value}, interval not known", f"{value}，区间未知"
        return f"{value}, 95 % interval {known}", f"{value}，95 % 区间 {known}"

    def _limits(self) -> tuple[str, str]:
        least, most = self.allowed
        if math.isinf(least):
            return f"up to {most:.3g}{self.unit}", f"不超过 {most:.3g}{self.unit}"
        if math.isinf(most):
            return f"from {least:.3g}{self.unit}", f"不低于 {least:.3g}{self.unit}"
        return f"within {least:.3g} .. {most:.3g}{self.unit}", f"{least:.3g} .. {most:.3g}{self.unit}"


def span(low: float, high: float, form: str = ".3g") -> str:
    """An interval as text; of an open one the end that is known."""
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:{form}} .. {high:{form}}"
    if math.isfinite(high):
        return f"< {high:{form}}"
    return f"> {low:{form}}" if math.isfinite(low) else "?"
