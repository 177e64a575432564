"""Scores that others published, as data: rows of scores, and the sources that say when, by what and how they were asked for.

published.toml ships with the package; a file of the same form in the user's configuration folder is merged over it. Values are as
printed (percent, marks out of ten); `Cell` gives them as shares of the best possible value, as everything here is compared.

What it gives up: a source seldom says its standard error, so a cell has one only where the number of items is known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from gangpao.config import Frozen, config_dir, load_toml
from gangpao.evaluate.results import Mode
from gangpao.evaluate.statistics import share_error

DEFAULT = ("minicpm-2b", "mistral-7b", "llama2-13b")  # stand beside every run
GROUPS = ("all", "en", "zh")
Group = Literal["all", "en", "zh"]
ROUNDING = 0.0055  # a mean of cells, printed with two digits, may be this far from its exact value


class PublishedTask(Frozen):
    """A task that somebody published scores of."""

    title: str = Field(min_length=1)
    language: Literal["en", "zh"]
    scale: float = Field(100.0, gt=0, description="The best possible value as it is printed.")
    aliases: list[str] = Field([], description="Other names of the task, such as lm-eval's.")


class Asked(Frozen):
    """How a source asked a task; None and 0 where it does not say."""

    metric: str = ""
    shots: int | None = Field(None, ge=0)
    mode: Mode | None = None
    items: int = Field(0, ge=0, description="Items that a score is over.")


class Source(Frozen):
    """Where scores were printed."""

    title: str = Field(min_length=1)
    date: str = Field("", pattern=r"^(20\d\d(-\d\d(-\d\d)?)?)?$", description="Year, month, day; as far as known.")
    harness: str = Field("", description="The program that asked, with its version.")
    note: str = ""
    asked: dict[str, Asked] = Field({}, description="By task, where the source says it.")


class Row(Frozen):
    """A model's scores in one source."""

    model: str = Field(min_length=1)
    source: str
    scores: dict[str, float] = Field({}, description="By task, as printed.")
    tables: list[str] = Field([], description="Tables of the source that have this row.")
    perplexity_mode: list[str] = Field([], description="Tasks whose printed score is from log-likelihoods.")
    own_report: list[str] = Field([], description="Tasks whose score the source took from the model's own report.")
    printed: dict[Group, float] = Field({}, description="Averages as printed.")


class Published(Frozen):
    """The whole file."""

    as_of: date
    tasks: dict[str, PublishedTask]
    sources: dict[str, Source]
    rows: dict[str, Row]

    @model_validator(mode="after")
    def _names_exist(self) -> Published:
        """Every name that a row or source uses is one of the file's own."""
        for name, row in self.rows.items():
            if row.source not in self.sources:
                raise ValueError(f"rows.{name}.source: no source {row.source!r}; there are {', '.join(self.sources)}")
            for field in ("scores", "perplexity_mode", "own_report"):
                self._check(f"rows.{name}.{field}", getattr(row, field), self.tasks)
            for field in ("perplexity_mode", "own_report"):
                self._check(f"rows.{name}.{field}", getattr(row, field), row.scores)
            for task, value in row.scores.items():
                if not 0 <= value <= self.tasks[task].scale:
                    raise ValueError(
                        f"rows.{name}.scores.{task}: {value} is not within 0 and {self.tasks[task].scale:g}"
                    )
        for name, source in self.sources.items():
            self._check(f"sources.{name}.asked", source.asked, self.tasks)
        return self

    def _check(self, where: str, names: Iterable[str], known: Iterable[str]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{where}: unknown task {unknown[0]!r}; there are {', '.join(known)}")

    def task_of(self, name: str) -> str:
        """The name here of a task that a run calls `name`; the same name where nothing is known of it."""
        wanted = _plain(name)
        for task, facts in self.tasks.items():
            if wanted in {_plain(task), *map(_plain, facts.aliases)}:
                return task
        return name

    def title(self, task: str) -> str:
        """How a task is written in tables."""
        return self.tasks[task].title if task in self.tasks else task

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Keys of the rows with these names: of a row, or of a model (all its rows). Raises ValueError listing the keys."""
        keys: dict[str, None] = {}
        for name in names:
            found = [k for k, row in self.rows.items() if name.lower() in (k.lower(), row.model.lower())]
            if not found:
                raise ValueError(
                    f"--published {name!r:.60}: no such row; there are {', '.join(self.rows)}. "
                    f"Add your own in {config_dir() / 'published.toml'}"
                )
            exact = [k for k in found if k.lower() == name.lower()]
            keys |= dict.fromkeys(exact or found)
        return list(keys)

    def of_model(self, name: str) -> list[str]:
        """Keys of the rows that are of a model itself, by its name in the catalog or in the row."""
        return [k for k, row in self.rows.items() if _plain(name) in (_plain(k), _plain(row.model))]

    def cell(self, key: str, task: str) -> Cell | None:
        """A row's score of a task, or None."""
        row = self.rows[key]
        if task not in row.scores:
            return None
        asked = self.sources[row.source].asked.get(task, Asked())
        value = row.scores[task] / self.tasks[task].scale
        marks = self.tasks[task].scale != 100
        return Cell(
            row=key,
            task=task,
            value=value,
            stderr=share_error(value, asked.items) if asked.items and not marks else None,
            metric=asked.metric,
            shots=asked.shots,
            mode="loglikelihood" if task in row.perplexity_mode else asked.mode,
            starred=task in row.perplexity_mode,
            own_report=task in row.own_report,
        )

    def odd_averages(self) -> list[str]:
        """Rows whose printed average is not the mean of their cells, a sentence each."""
        found = []
        for name, row in self.rows.items():
            for group, printed in row.printed.items():
                mean = self.mean(name, group)
                if mean is not None and abs(mean - printed) > ROUNDING:
                    found.append(f"{row.model} ({group}): printed {printed:.2f}, mean of the cells {mean:.3f}")
        return found

    def mean(self, key: str, group: Group) -> float | None:
        """The plain mean of a row's eleven, nine or two tasks as printed; None where one of them is missing."""
        row = self.rows[key]
        tasks = [t for t in ELEVEN if group in ("all", self.tasks[t].language)]
        if any(t not in row.scores for t in tasks):
            return None
        return sum(row.scores[t] for t in tasks) / len(tasks)


ELEVEN = (
    "ceval", "cmmlu", "mmlu", "humaneval", "mbpp", "gsm8k", "math", "bbh", "arc_easy", "arc_challenge", "hellaswag",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One published score, as a share of the best possible value."""

    row: str
    task: str
    value: float
    stderr: float | None
    metric: str
    shots: int | None
    mode: Mode | None
    starred: bool
    own_report: bool


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@functools.cache
def _load(user_file: Path) -> Published:
    return load_toml(Path(__file__).with_name("published.toml"), Published, user_files=[user_file])


def load_published() -> Published:
    """The rows shipped with the package with the user's published.toml merged over them."""
    return _load(config_dir() / "published.toml")
