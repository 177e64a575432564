"""The form of a verdict, the same for every grader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, what was taken from it, and why."""

    correct: bool
    extracted: str | None  # None: the answer holds nothing that could be compared
    why: str  # one line for the log of items
