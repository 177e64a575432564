"""A run: tasks one after the other, every request in the journal, every item in a file, one results.json at the end.

    ask          the task's docs with their prompts
    lm-eval      asks the model through the Harness and says what each answer is worth
    scored       scores, standard errors, parts by subject; what could not be asked counts as wrong and is listed

After kill -9 the same command goes on: the journal has what was answered, and the rest is asked. results.json is written after
each task, with a note while tasks are missing.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.evaluate import scored
from gangpao.evaluate.contamination import Found, contaminated
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.protocol import Model
from gangpao.evaluate.results import Item, RunResult, TaskResult, provenance, write_items, write_run
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.tasks.build import docs_of
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import LIMITS, SUITES, TASKS
from gangpao.progress import Progress
from gangpao.units import show_count

UNFINISHED = "This run is not finished: the same command goes on with it."


@dataclass(slots=True)
class _State:
    started: float = field(default_factory=time.monotonic)
    tasks: list[TaskResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tasks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks of suites and single tasks, once each. Names that we do not know are lm-eval's."""
    return tuple(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def evaluate(model: Model, settings: Settings, out: Path, *, quiet: bool = False) -> RunResult:
    """Ask everything, or what is still missing, and write the folder. Raises ValueError saying what to do."""
    from gangpao.evaluate.models.harness import Harness

    if not settings.tasks:
        raise ValueError("nothing to ask: give --suite or --task (--list shows them)")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    meter = cost.Meter(settings.cost_profile)
    state = _State()
    source = DataSource(settings.data)
    with Journal(out, _identity(model, settings)) as journal, _Shown(meter, quiet) as shown:
        before = journal.get("seconds") or 0.0
        settings = _ready(settings, source, state, shown.progress)
        found = _contaminated(settings, source, shown.progress) if settings.corpus else None
        try:
            for number, name in enumerate(settings.tasks, 1):
                harness = Harness(
                    model, journal, shown.of(name, number, len(settings.tasks)),
                    think=settings.think, think_budget=settings.think_budget, max_tokens=settings.max_tokens, seed=settings.seed,
                )  # fmt: skip
                for scores, items in _asked(name, harness, settings, source, found):
                    state.tasks.append(scores)
                    if items:
                        write_items(out, scores.items_in or scores.task, items)
                missing = number < len(settings.tasks)
                result = _result(model, settings, state, before, meter, missing=missing)
                write_run(out, result)
        finally:
            journal.put("seconds", before + time.monotonic() - state.started)
    return result


def _ready(settings: Settings, source: DataSource, state: _State, progress: Progress) -> Settings:
    """The tasks that can be asked, before any is: a run shall not end at its last task. Raises ValueError where one cannot that
    was asked for by its name, or none can."""
    ready: list[str] = []
    for name in settings.tasks:
        try:
            if name in TASKS:
                scored.check(TASKS[name], settings, source)
        except ValueError as error:
            if name not in settings.optional:
                raise
            state.notes.append(f"{name} was left out: {error}")
            progress.note(state.notes[-1])
        else:
            ready.append(name)
    if not ready:
        raise ValueError("; ".join(state.notes))
    return replace(settings, tasks=tuple(ready))


def _asked(
    name: str, harness: Any, settings: Settings, source: DataSource, found: Found | None
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """The scores of a task, and with the first of them its items."""
    if name in TASKS:
        tainted = None if found is None else found[name]
        yield from scored.own_task(TASKS[name], harness, settings, source, _limit(name, settings), tainted)
    else:
        yield from scored.foreign_task(name, harness, settings)


def _contaminated(settings: Settings, source: DataSource, progress: Progress) -> Found:
    """By task, all of whose docs are looked for, whatever the limit."""
    assert settings.corpus is not None
    own = [TASKS[name] for name in settings.tasks if name in TASKS]
    return contaminated({task.name: docs_of(task, source) for task in own}, settings.corpus, progress)


def _limit(name: str, settings: Settings) -> int | None:
    return settings.limit if settings.limit is not None else LIMITS.get(settings.suite, {}).get(name)


def _identity(model: Model, settings: Settings) -> dict[str, Any]:
    """What an answer depends on. Which tasks are asked, and how many items of them, is not part of it."""
    facts = model.facts
    return {"model": facts.sha256 or f"{facts.url} {facts.name}", **dict(model.settings), **settings.of_answers()}


def _result(
    model: Model, settings: Settings, state: _State, before: float, meter: cost.Meter, *, missing: bool
) -> RunResult:
    seconds = before + time.monotonic() - state.started
    usage = model.usage
    return RunResult(
        **provenance(),
        harness=f"lm-eval {importlib.metadata.version('lm_eval')}",
        model=model.facts,
        suite=settings.suite,
        limit=settings.limit,
        settings={**dict(model.settings), **settings.of_answers(), "run_code": settings.run_code, "cost": meter.name},
        tasks=state.tasks,
        seconds=round(seconds, 1),
        tokens={"prompt": usage.prompt, "cached": usage.cached, "completion": usage.completion},
        yuan=meter.yuan(seconds),
        notes=[*state.notes, *([UNFINISHED] if missing else [])],
    )  # fmt: skip


class _Shown:
    """One progress line a task: requests done, time left, what it has cost so far."""

    def __init__(self, meter: cost.Meter, quiet: bool) -> None:
        from gangpao.progress import Silent

        self.progress: Progress = (
            Silent() if quiet else Progress(show=show_count, more=lambda seconds: cost.show_yuan(meter.yuan(seconds)))
        )
        self._shown = ""

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()

    def of(self, task: str, number: int, tasks: int) -> Callable[[str, int, int], None]:
        """For a task, which is that one of so many."""

        def show(what: str, done: int, total: int) -> None:
            label = f"{task} ({number} of {tasks}), {what}"
            if label != self._shown:
                self._shown = label
                self.progress.start(label, total, done)
            self.progress.update(done)

        return show
