"""Scores that an earlier command left in the same folder: a second one with other tasks adds to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gangpao.evaluate.models.protocol import Model
from gangpao.evaluate.results import RunResult, TaskResult, read_run

UNFINISHED = "This run is not finished: the same command goes on with it."
_KEPT = "Of an earlier command into this folder: "


def earlier_run(out: Path, model: Model, settings: Mapping[str, Any]) -> RunResult | None:
    """The result that is in the folder; None where there is none.

    settings: those that change scores. Raises ValueError where it is another model's, was made with other settings, or cannot be
    read: the file is left as it is.
    """
    path = out / "results.json"
    if not path.exists():
        return None
    try:
        found = read_run(out)
    except ValueError as error:
        raise ValueError(f"{error}, with another --out; or delete {path}, which would be written over") from error
    wanted = json.loads(json.dumps(dict(settings)))
    differing = sorted(name for name in wanted if found.settings.get(name) != wanted[name])
    if _who(found.model.model_dump()) != _who(model.facts.model_dump()):
        differing.insert(0, f"model (was {found.model.name}, is {model.facts.name})")
    if differing:
        raise ValueError(
            f"{path} has scores of another run, with another {', '.join(differing)}: choose another --out, or delete the file"
        )
    return found


def _who(facts: Mapping[str, Any]) -> str:
    return str(facts["sha256"] or f"{facts['url']} {facts['name']}")


def _name(task: TaskResult) -> str:
    return task.items_in or task.task


def with_earlier(result: RunResult, earlier: RunResult) -> RunResult:
    """The result, and behind it the scores of tasks that it does not have; its notes say which those are."""
    fresh = {_name(task) for task in result.tasks}
    kept = [task for task in earlier.tasks if _name(task) not in fresh]
    speed = result.speed or earlier.speed
    if not kept:
        return result.model_copy(update={"speed": speed})
    names = ", ".join(dict.fromkeys(_name(task) for task in kept))
    limit = "" if earlier.limit == result.limit else f" (--limit {earlier.limit or 'not given'})"
    notes = [n for n in earlier.notes if n != UNFINISHED and not n.startswith(_KEPT) and n.split(" ")[0] not in fresh]
    suites = dict.fromkeys(f"{earlier.suite} {result.suite}".split())
    return result.model_copy(
        update={
            "tasks": [*result.tasks, *kept],
            "suite": " ".join(suites),
            "speed": speed,
            "notes": list(dict.fromkeys([*result.notes, *notes, f"{_KEPT}{names}{limit}."])),
        }
    )
