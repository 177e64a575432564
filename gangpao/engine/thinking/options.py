"""What a user, or a program, says about a model's thinking: on or off, how much of it, and where it is cut off what is said then.

A budget is tokens that a thought may take, its marks included; 0 is no thought, NO_LIMIT (-1) as many as the model likes, and then
no share of the answer is kept free for what comes behind it. Where none is given, a thought has three quarters of what the answer
may take, so that max_tokens never leaves an empty answer. A word for the effort is a budget where the chat template does not know
such words itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gangpao.options import option

NO_LIMIT = -1
MAX_BUDGET = 1_000_000
MOST = 0.75  # of an answer for its thought
# Effort -> share of the answer, and tokens at most: the figures that Gemini's API has for these words.
_EFFORTS: Mapping[str, tuple[float, int]] = {"low": (0.2, 1024), "medium": (0.5, 8192), "high": (MOST, 24_576)}
_OFF = ("none", "minimal", "off", "disabled")


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """See the module. think: None leaves it to the model. effort: low, medium, high; none and minimal are off."""

    think: bool | None = option(
        None, "Switch a model's thinking, where it has any.", flag="--think/--no-think", unset="the model's own"
    )
    think_budget: int | None = option(
        None, "Tokens that a thought may take; 0 is none, -1 no limit.", NO_LIMIT, MAX_BUDGET,
        unset="three quarters of the answer",
    )  # fmt: skip
    think_message: str = option("", "What a thought that is cut off says last.")
    effort: str | None = None

    @property
    def on(self) -> bool | None:
        """Whether it is to think: as said, else what a budget means; None leaves it to the model."""
        if self.think is not None:
            return self.think
        return None if self.think_budget is None else self.think_budget != 0

    @classmethod
    def asked(cls, think: bool | None, effort: str | None, budget: int | None = None) -> Thinking:
        """What a program says: a word for the effort is a switch, too, where it sets none."""
        if think is None and budget is None and effort is not None:
            think = effort not in _OFF
        return cls(think=think, effort=effort, think_budget=budget)

    @classmethod
    def typed(cls, text: str) -> Thinking:
        """What a user types: on, off, default, a word for the effort, or a budget of tokens. Raises ValueError."""
        if text in ("on", "off", "default"):
            return cls(think={"on": True, "off": False}.get(text))
        if text in _EFFORTS:
            return cls.asked(None, text)
        if not text.removeprefix("-").isdigit() or not NO_LIMIT <= int(text) <= MAX_BUDGET:
            raise ValueError(f"{text!r:.40}: on, off, default, {', '.join(_EFFORTS)}, or tokens (-1 is no limit)")
        return cls(think_budget=int(text))

    def __str__(self) -> str:
        """As a user types it."""
        if self.think_budget is not None and self.on is not False:
            return "no limit" if self.think_budget == NO_LIMIT else f"at most {self.think_budget} tokens"
        return self.effort or {None: "the model's own choice", True: "on", False: "off"}[self.on]

    def variables(self) -> dict[str, Any]:
        """Its switches as variables of a chat template, under the names that templates have for them; none where nothing is
        said."""
        switch = {} if self.on is None else {"enable_thinking": self.on, "thinking": self.on}
        return switch | ({} if self.effort is None else {"reasoning_effort": self.effort})

    def over(self, other: Thinking) -> Thinking:
        """What is said here, and where nothing is what `other` says."""
        mute = self.think is None and self.think_budget is None and self.effort is None
        first = other if mute else self
        return Thinking(
            think=first.think, effort=first.effort, think_message=self.think_message or other.think_message,
            think_budget=first.think_budget if first.on is False or first.think_budget is not None else other.think_budget,
        )  # fmt: skip

    def most(self, room: int, *, knows_effort: bool = False) -> int | None:
        """Tokens that a thought may take of an answer of `room` tokens; None is no limit. knows_effort: the template takes the
        word."""
        if self.on is False:
            return 0
        if self.think_budget == NO_LIMIT:
            return None
        share, tokens = _EFFORTS.get("" if knows_effort else self.effort or "", (MOST, MAX_BUDGET))
        if self.think_budget is not None:
            share, tokens = MOST, self.think_budget
        return min(tokens, int(share * room))
