"""What a server says that it read and wrote, and what that costs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from gangpao.openai_client import whole_number


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens, in yuan; cached is for those of a prompt that the server had in its cache."""

    prompt: float
    completion: float
    cached: float | None = None

    @classmethod
    def read(cls, text: str, flag: str) -> Price:
        """IN,OUT or IN,OUT,CACHED. Raises ValueError naming the option."""
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError:
            values = []
        if len(values) not in (2, 3) or not all(0 <= v < float("inf") for v in values):
            raise ValueError(
                f"{flag} {text!r:.40}: write IN,OUT or IN,OUT,CACHED, yuan per million tokens, for example 2,8"
            )
        return cls(*values)


@dataclass(slots=True)
class Usage:
    """Tokens of many answers together. Thread-safe; `yuan` is None without a price."""

    price: Price | None = None
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, usage: Any) -> None:
        """Take in the usage object of one answer; what is missing counts nothing."""
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        self.count(
            whole_number(usage, "prompt_tokens", 0),
            whole_number(details, "cached_tokens", 0),
            whole_number(usage, "completion_tokens", 0),
        )

    def count(self, prompt: int, cached: int, completion: int) -> None:
        """Take in one answer's counts; cached are among those of the prompt."""
        with self._lock:
            self.requests += 1
            self.prompt += prompt
            self.cached += cached
            self.completion += completion

    def tokens(self) -> dict[str, int]:
        """In the words of RunResult: prompt (computed), cached (taken from before), completion."""
        return {"prompt": self.prompt - self.cached, "cached": self.cached, "completion": self.completion}

    @property
    def yuan(self) -> float | None:
        """What they cost."""
        if self.price is None:
            return None
        cached = self.price.prompt if self.price.cached is None else self.price.cached
        fresh = (self.prompt - self.cached) * self.price.prompt
        return (fresh + self.cached * cached + self.completion * self.price.completion) / 1e6
