"""What a report is made of, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.evaluate.report.compare import is_share
from gangpao.evaluate.report.page.words import WORDS
from gangpao.evaluate.report.published import Published
from gangpao.evaluate.report.runs import Run
from gangpao.evaluate.results import TaskResult
from gangpao.page import Language
from gangpao.units import show_bytes

LOUD_SHARE = 0.05  # of empty answers, or of items left out


@dataclass(frozen=True, slots=True)
class Given:
    """keys: of published rows, in the order of their columns. profile: of costs, for runs that name none."""

    runs: Sequence[Run]
    published: Published
    keys: Sequence[str]
    language: Language = "en"
    items: int = 5
    profile: str | None = None

    def say(self, name: str, /, **values: Any) -> str:
        """A word or a sentence in the page's language."""
        return WORDS[self.language][name].format(**values)

    def reason(self, code: str) -> str:
        """Why an item was left out; a code that has no words stays as it is."""
        return WORDS[self.language].get(f"reason.{code}", code)

    def title(self, task: str) -> str:
        """A task as tables write it."""
        return self.published.title(self.published.task_of(task))

    def listed(self, parts: Sequence[str]) -> str:
        """Words behind one another."""
        return ("、" if self.language == "zh" else ", ").join(parts)


def machine(hardware: Mapping[str, Any]) -> dict[str, str]:
    """What a run says of its machine, its memory in the usual unit."""
    sizes = ("memory", "memory_bytes")
    return {
        key: show_bytes(value) if key in sizes and isinstance(value, int) else str(value)
        for key, value in hardware.items()
    }


def factor(score: TaskResult) -> float:
    """What a score is multiplied with to be shown: shares are shown in percent."""
    return 100.0 if is_share(score) else 1.0


def number(value: float, of: TaskResult) -> str:
    """A value, an error or a difference of a score: two digits for percent and marks, four significant ones for others."""
    shown = value * factor(of)
    return f"{shown:.2f}" if is_share(of) or of.scale != 1 else f"{shown:.4g}"


def signed(value: float, of: TaskResult) -> str:
    """A difference with its sign."""
    text = number(abs(value), of)
    return f"−{text}" if value < 0 else f"+{text}"


def with_error(value: str, error: float | None, of: TaskResult) -> str:
    """value ± error, where there is one."""
    return value if error is None else f"{value} ± {number(error, of)}"


def is_limited(score: TaskResult) -> bool:
    """Whether the score is over fewer items than the task has."""
    return score.items < score.of
