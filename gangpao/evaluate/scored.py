"""What lm-eval says of a task's answers, as results: scores, standard errors, parts, and what was not an ordinary answer."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.evaluate import harnessed
from gangpao.evaluate.contamination import Searched
from gangpao.evaluate.graders.instructions.follow import share
from gangpao.evaluate.results import Answer, Item, TaskResult
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.statistics import mean_error
from gangpao.evaluate.tasks.build import Asked, Grade, ask, harness_task
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.docs import Doc
from gangpao.evaluate.tasks.table import Task

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness
    from gangpao.evaluate.tasks.grade import Grader

_MODES = {"choice": "loglikelihood", "contexts": "loglikelihood", "word": "loglikelihood", "written": "generation"}


def check(task: Task, settings: Settings, source: DataSource) -> None:
    """Raises ValueError where the task's data are not there, or its answers cannot be graded."""
    _prepared(task, settings, source, 1)


def _prepared(
    task: Task, settings: Settings, source: DataSource, limit: int | None
) -> tuple[Asked, Grader | None, bool]:
    """The task with its docs, what grades its answers, and whether it is asked as a conversation."""
    from gangpao.evaluate.tasks.grade import grader_of

    chat = settings.chat or task.conversation
    grader = grader_of(task, run_code=settings.run_code, chat=chat) if task.grader else None
    return ask(task, source, limit=limit, shots=settings.shots, chat=chat), grader, chat


def own_task(
    task: Task, harness: Harness, settings: Settings, source: DataSource, limit: int | None, searched: Searched | None
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """A row of our table. What could not be asked (too long, a choice without a token) is wrong, and is counted.

    searched: places of docs that a training corpus holds, or that could not be looked for in it.
    """
    asked, grader, chat = _prepared(task, settings, source, limit)
    found = harnessed.run(harness_task(asked, grader.grade if grader else None, chat=chat), harness, settings, chat)
    items = [_with_subject(_item(asked, sample, harness), sample["doc"]) for sample in found["samples"][task.name]]
    if grader:
        items = [_explained(item, doc, grader.grade) for item, doc in zip(items, asked.docs, strict=True)]
    searched_in = searched or Searched()
    seen = [doc["place"] in searched_in.found for doc in asked.docs]
    unknown = [doc["place"] in searched_in.too_short for doc in asked.docs]
    unclean = [one or other for one, other in zip(seen, unknown, strict=True)]
    left_out = Counter(flag for item in items for flag in set(item.flags) & harnessed.LEFT_OUT)
    metrics = list(dict.fromkeys(name for item in items for name in item.scores))
    assert task.main in metrics, (task.name, metrics)
    thinking = None
    if task.how == "written":
        made = (harnessed.written(sample["arguments"][0], 1, harness)[0] for sample in found["samples"][task.name])
        thinking = harnessed.thinking_of(list(made))
    for name in sorted(metrics, key=lambda name: name != task.main):
        each = _weighted(asked, items, name)
        kept = [score for score in each if score is not None]
        value, stderr = _value(name, kept)
        result = TaskResult(
            task=task.benchmark, metric=name, value=value, stderr=stderr, items=len(kept), of=asked.of,
            higher_is_better=name != "perplexity", mode=_MODES[task.how], shots=asked.shots, main=name == task.main,
            parts=_parts(asked, each, name), prompt_version=f"{task.name} {task.version}",
            grader=grader.name if grader else "", stop=[] if chat else list(task.stop), items_in=task.name, data=asked.origin,
            left_out=dict(left_out),
            thinking=thinking,
            contaminated=None if searched is None else sum(seen), not_searched=None if searched is None else sum(unknown),
            clean_value=_clean(name, each, unclean),
        )  # fmt: skip
        yield result, items if name == task.main else []


def _item(asked: Asked, sample: dict[str, Any], harness: Harness) -> Item:
    doc = sample["doc"]
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    if asked.task.how == "written":
        return _written_item(sample, scores, harness)
    answers: list[Answer] = []
    flags: list[str] = []
    for arguments in sample["arguments"]:
        answer, said = harnessed.scored_answer(arguments, harness)
        answers.append(answer)
        flags += said
    several = asked.task.how == "contexts"
    return Item(
        item=str(doc["number"]),
        prompt=harnessed.prompt_of([str(context) for context, _ in sample["arguments"]]) if several else doc["prompt"],
        ids=None if several else harness.ids_of(sample["arguments"][0][0].rstrip()),
        answers=answers,
        target=sample["target"] if asked.task.how == "word" else doc["gold"],
        scores=scores,
        flags=sorted(set(flags)),
    )


def _with_subject(item: Item, doc: Mapping[str, Any]) -> Item:
    """The item with its subject, if it has one: questions of a subject hang together, and comparisons count that."""
    subject = doc.get("subject")
    return item.model_copy(update={"extra": {**item.extra, "subject": subject}}) if subject else item


def _written_item(sample: dict[str, Any], scores: dict[str, float], harness: Harness) -> Item:
    arguments = sample["arguments"][0]
    made = harnessed.written(arguments, 1, harness)
    answer, flags = harnessed.written_answer(made[0])
    return Item(
        item=str(sample["doc"]["number"]), prompt=str(arguments[0]), ids=harness.ids_of(*arguments), answers=[answer],
        target=sample["target"], scores=scores, flags=flags, extra=harnessed.thoughts(made),
    )  # fmt: skip


def _explained(item: Item, doc: Doc, grade: Grade) -> Item:
    """With what the grader took for the answer, and why it is right or wrong."""
    said = {name: value for name, value in grade(doc, item.answers[0].text).items() if isinstance(value, str) and value}
    return item.model_copy(update={"extra": item.extra | said})


Weighted = tuple[float, int]  # a score, and over how many things it is


def _weighted(asked: Asked, items: Sequence[Item], metric: str) -> list[Weighted | None]:
    """Of each item; None where it has no such score. What is counted by instruction weighs as many as the item has."""
    by_instruction = metric.startswith("instruction_")
    return [
        (item.scores[metric], len(json.loads(doc["instructions"])) if by_instruction else 1) if metric in item.scores else None
        for doc, item in zip(asked.docs, items, strict=True)
    ]  # fmt: skip


def _value(metric: str, scores: Sequence[Weighted]) -> tuple[float, float | None]:
    """With its standard error, for which items are independent."""
    if metric.startswith("instruction_"):
        return share([(score * weight, weight) for score, weight in scores])
    values = [score for score, _ in scores]
    middle, error = sum(values) / len(values), mean_error(values)
    if metric != "perplexity":
        return middle, error
    return math.exp(-middle), error and math.exp(-middle) * error


def _clean(metric: str, scores: Sequence[Weighted | None], unclean: Sequence[bool]) -> float | None:
    """The value over the items that were looked for and not found; None where these are all or none."""
    kept = [score for score, was in zip(scores, unclean, strict=True) if not was and score is not None]
    return _value(metric, kept)[0] if kept and any(unclean) else None


def _parts(asked: Asked, scores: Sequence[Weighted | None], metric: str) -> dict[str, float]:
    """The metric by subject."""
    by_subject: dict[str, list[Weighted]] = defaultdict(list)
    for doc, score in zip(asked.docs, scores, strict=True):
        if doc.get("subject") and score is not None:
            by_subject[doc["subject"]].append(score)
    return {subject: _value(metric, found)[0] for subject, found in sorted(by_subject.items())}
