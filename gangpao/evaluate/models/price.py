"""What a server's tokens cost."""

from __future__ import annotations

from dataclasses import dataclass

from gangpao.evaluate.models.protocol import Usage


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

    def yuan(self, usage: Usage) -> float:
        """Of so many tokens."""
        cached = self.prompt if self.cached is None else self.cached
        return (usage.prompt * self.prompt + usage.cached * cached + usage.completion * self.completion) / 1e6
