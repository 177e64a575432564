"""A run: tasks one after the other, every request in the journal, every item in a file, one results.json at the end.

    ask          the task's docs with their prompts
    lm-eval      asks the model through the Harness and says what each answer is worth
    scored       scores, standard errors, parts by subject; what could not be asked counts as wrong and is listed

After kill -9 the same command goes on: the journal has what was answered and spent, and the rest is asked. results.json is written
after each task, with a note while tasks are missing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangpao import cost
from gangpao.evaluate import foreign, scored
from gangpao.evaluate.contamination import Searched, contaminated
from gangpao.evaluate.earlier import UNFINISHED, earlier_run, with_earlier
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.protocol import Model
from gangpao.evaluate.results import Item, RunResult, TaskResult, provenance, write_items, write_run
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.spent import Spent
from gangpao.evaluate.tasks.build import docs_of
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import LIMITS, SUITES, TASKS
from gangpao.progress import Progress
from gangpao.units import show_count

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness


@dataclass(slots=True)
class _State:
    tasks: list[TaskResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tasks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks of suites and single tasks, once each. Names that we do not know are lm-eval's."""
    return tuple(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def check_suites(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is no suite, with those that there are."""
    for name in names:
        if name not in SUITES:
            other = f"; it is a task: --task {name}" if name in TASKS else ""
            raise ValueError(f"--suite {name!r:.60}: there is no such suite{other}. There are {', '.join(SUITES)}")


def evaluate(model: Model, settings: Settings, out: Path, *, quiet: bool = False) -> RunResult:
    """Ask everything, or what is still missing, and write the folder, where scores of other tasks stay. Raises ValueError saying
    what to do."""
    from gangpao.evaluate.models.harness import Harness

    if not settings.tasks:
        raise ValueError("nothing to ask: give --suite or --task (--list shows them)")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    meter = cost.Meter(settings.cost_profile)
    state = _State()
    source = DataSource(settings.data)
    with Journal(out, _identity(model, settings)) as journal, _Shown(meter, quiet) as shown:
        earlier = earlier_run(out, model, _settings(model, settings))
        spent = Spent(journal, model.usage)
        _told(journal.warnings, shown.progress)
        settings = _ready(settings, source, state, shown.progress)
        state.notes += _told(_without_effect(model, settings), shown.progress)
        found = _contaminated(settings, source, state, shown.progress) if settings.corpus else None
        try:
            for number, name in enumerate(settings.tasks, 1):
                harness = Harness(
                    model, journal, spent.noting(shown.of(name, number, len(settings.tasks))),
                    think=settings.think, think_budget=settings.think_budget, max_tokens=settings.max_tokens, seed=settings.seed,
                )  # fmt: skip
                for scores, items in _asked(name, harness, settings, source, found, state, shown.progress):
                    state.tasks.append(scores)
                    if items:
                        write_items(out, scores.items_in or scores.task, items)
                missing = number < len(settings.tasks)
                result = _result(
                    model, settings, state, spent, meter, [*journal.warnings, *([UNFINISHED] if missing else [])]
                )
                result = result if earlier is None else with_earlier(result, earlier)
                write_run(out, result)
        finally:
            spent.save()
    return result


def _told(notes: Sequence[str], progress: Progress) -> list[str]:
    """The notes, each of them shown."""
    for note in notes:
        progress.note(note)
    return list(notes)


def _ready(settings: Settings, source: DataSource, state: _State, progress: Progress) -> Settings:
    """The tasks that can be asked, before any is: a run shall not end at its last task. Raises ValueError where one cannot that
    was asked for by its name, or none can."""
    ready: list[str] = []
    for name in settings.tasks:
        try:
            if name in TASKS:
                scored.check(TASKS[name], settings, source)
            else:
                foreign.manager_for(name)
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


def _without_effect(model: Model, settings: Settings) -> list[str]:
    """What was said about thinking, where nothing comes of it."""
    options = {
        "--think": settings.think,
        "--no-think": settings.think is False or None,
        "--think-budget": settings.think_budget,
    }
    given = [
        name for name, value in options.items() if value is not None and not (name == "--think" and value is False)
    ]
    if not given:
        return []
    if model.thinks is False:
        return [f"{' and '.join(given)}: no effect, since the chat template of {model.facts.name} has no thoughts"]
    if not settings.chat and not any(TASKS[name].conversation for name in settings.tasks if name in TASKS):
        return [f"{' and '.join(given)}: no effect, since no task is asked as a conversation here; --chat does that"]
    return []


def _asked(
    name: str,
    harness: Harness,
    settings: Settings,
    source: DataSource,
    found: Mapping[str, Searched] | None,
    state: _State,
    progress: Progress,
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """The scores of a task, and with the first of them its items."""
    if name in TASKS:
        searched = None if found is None else found[name]
        yield from scored.own_task(TASKS[name], harness, settings, source, _limit(name, settings), searched)
    else:
        yield from foreign.foreign_task(
            name, harness, settings, lambda note: state.notes.extend(_told([note], progress))
        )


def _contaminated(
    settings: Settings, source: DataSource, state: _State, progress: Progress
) -> Mapping[str, Searched] | None:
    """By task, all of whose docs are looked for, whatever the limit. None where all tasks are lm-eval's, which is told."""
    assert settings.corpus is not None
    own = [TASKS[name] for name in settings.tasks if name in TASKS]
    others = [name for name in settings.tasks if name not in TASKS]
    if others:
        note = f"--corpus was not searched for items of {', '.join(others)}: that is for our own tasks, and these are lm-eval's"
        state.notes += _told([note], progress)
    return contaminated({task.name: docs_of(task, source) for task in own}, settings.corpus, progress) if own else None


def _limit(name: str, settings: Settings) -> int | None:
    return settings.limit if settings.limit is not None else LIMITS.get(settings.suite, {}).get(name)


def _identity(model: Model, settings: Settings) -> dict[str, Any]:
    """What an answer depends on. Which tasks are asked, and how many items of them, is not part of it."""
    facts = model.facts
    return {"model": facts.sha256 or f"{facts.url} {facts.name}", **dict(model.settings), **settings.of_answers()}


def _settings(model: Model, settings: Settings) -> dict[str, Any]:
    """Of the result: what changes scores."""
    return {**dict(model.settings), **settings.of_answers()}


def _result(
    model: Model, settings: Settings, state: _State, spent: Spent, meter: cost.Meter, notes: Sequence[str]
) -> RunResult:
    seconds = spent.seconds
    return RunResult(
        **provenance(),
        harness=f"lm-eval {importlib.metadata.version('lm_eval')}",
        model=model.facts,
        suite=settings.suite,
        limit=settings.limit,
        settings={**_settings(model, settings), "run_code": settings.run_code, "cost": meter.name},
        tasks=list(state.tasks),
        seconds=round(seconds, 1),
        tokens=spent.tokens,
        yuan=meter.yuan(seconds),
        notes=[*state.notes, *notes],
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
