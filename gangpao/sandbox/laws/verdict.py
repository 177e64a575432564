"""What every experiment decides by: an interval against the values for which the answer is yes.

The answer is yes where all of the 95 % interval lies within those values, no where none of it does, and "cannot tell" where
the interval holds values of both kinds, or nothing tells how wide it is. So no estimate is called a result by its middle.

What it gives up: each question is judged by itself; of twenty sure answers one may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Answer = Literal["yes", "no", "cannot tell"]
Limits = tuple[float, float]

UNKNOWN: Limits = (-math.inf, math.inf)  # the interval of what nothing tells
BELOW_ZERO: Limits = (-math.inf, 0.0)


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
    """A question by its code, what was measured with its 95 % interval, and the values that mean yes.

    asks: the code, which the words of the experiment know; about: what the question is about, as plain data. unit: written behind
    numbers, for example " %". The interval of a value without known noise is UNKNOWN.
    """

    asks: str
    value: float | None
    interval: Limits
    allowed: Limits
    unit: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

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
            "asks": self.asks, "about": dict(self.about), "answer": self.answer, "value": value, "low": low, "high": high,
            "allowed": [least, most], "unit": self.unit,
        }  # fmt: skip
