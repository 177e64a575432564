"""Rewards that a program counts: what an answer is worth, from 0 to 1, without another model.

A configuration names rows of this table and their weights; a name of anything else is an error, and nothing that it names is
executed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

Reward = Callable[[str, str], float]
"""(answer, what the data say is right) -> 0 .. 1."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
_THOUGHT = re.compile(r"<think>\s*\S.*?</think>\s*(\S.*)", re.DOTALL)
_LIST_ITEM = re.compile(r"(?m)^\s*(?:[-*]|\d+[.)])\s+\S")


def _value(text: str) -> Fraction | None:
    """The last number of a text: integers, decimals, fractions, with commas between thousands."""
    found = _NUMBER.findall(text)
    try:
        return Fraction(found[-1].replace(",", "")) if found else None
    except (ValueError, ZeroDivisionError):
        return None


def number(answer: str, expected: str) -> float:
    """1 where the last number of the answer is that of what is expected."""
    right = _value(expected)
    if right is None:
        raise ValueError(f"reward number: what is expected ({expected[:60]!r}) has no number; choose exact or contains")
    return float(_value(answer) == right)


def exact(answer: str, expected: str) -> float:
    """1 where both are the same but for white space at the ends."""
    return float(answer.strip() == expected.strip())


def contains(answer: str, expected: str) -> float:
    """1 where what is expected is somewhere in the answer."""
    return float(expected.strip() in answer)


def thought(answer: str, expected: str) -> float:
    """1 where the answer is <think>something</think> and then something."""
    return float(_THOUGHT.fullmatch(answer.strip()) is not None)


def listed(answer: str, expected: str) -> float:
    """1 where the answer has two or more items of a list, a line each."""
    return float(len(_LIST_ITEM.findall(answer)) > 1)


def short(answer: str, expected: str) -> float:
    """1 for an answer no longer than what is expected, falling to 0 at twice its characters."""
    most = max(1, len(expected.strip()))
    return min(1.0, max(0.0, 2 - len(answer.strip()) / most))


def ended(answer: str, expected: str) -> float:
    """1 where the answer is not empty and ends like a sentence."""
    return float(answer.rstrip().endswith((".", "!", "?", "。", "！", "？", "”", '"')))


REWARDS: Mapping[str, Reward] = {f.__name__: f for f in (number, exact, contains, thought, listed, short, ended)}


def reward_of(weights: Mapping[str, float]) -> Reward:
    """The weighted sum of rows of the table. Raises ValueError for a name that is not in it, or no name at all."""
    if not weights:
        raise ValueError(
            f"rewards: none is named; choose from {', '.join(REWARDS)}, for example rewards = {{ number = 1.0 }}"
        )
    for name in weights:
        if name not in REWARDS:
            near = difflib.get_close_matches(name, REWARDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"rewards: there is no {name}{hint} (there are {', '.join(REWARDS)})")

    def total(answer: str, expected: str) -> float:
        return sum(weight * REWARDS[name](answer, expected) for name, weight in weights.items())

    return total
