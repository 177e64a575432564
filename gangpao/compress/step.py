"""What a step of a compression gives back: the model it made and what is to be known of it.

A step is a function (config, source, original, out, stream) -> StepResult. source is the model of the step before and original the
one that all began with, each a Hugging Face folder or a .gguf file; out is the step's own folder. Called again with the same
folder it goes on where it was stopped, and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class StepResult:
    """path: the model, `out/model` (a Hugging Face folder) or `out/model.gguf`. facts: for report and facts.json."""

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)


class Stopped(Exception):
    """A signal ended a step, and everything is saved: the same call goes on. signal: its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}; the same command goes on from what is saved")
        self.signal = signal
