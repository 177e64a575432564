"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked and how. Whatever of it changes an answer names the run.

    optional: tasks that came with a suite: one whose data are not there, or whose programs may not be run, is left out and told.
    """

    tasks: tuple[str, ...]
    suite: str = ""
    optional: frozenset[str] = frozenset()
    data: str | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    think: bool | None = None
    think_budget: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    run_code: bool = False
    corpus: Path | None = None
    cost_profile: str | None = None

    def of_answers(self) -> dict[str, Any]:
        """What an answer depends on, beside the model."""
        return {name: getattr(self, name) for name in ("shots", "chat", "think", "think_budget", "max_tokens", "seed")}
