"""What lm-eval says of a task's answers, as results: scores, standard errors, parts, and what was not an ordinary answer."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.evaluate.results import Answer, Item, TaskResult, Thinking
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.statistics import mean_error
from gangpao.evaluate.tasks.build import Asked, Grade, ask, harness_task
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.docs import Doc
from gangpao.evaluate.tasks.table import TASKS, Task

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness
    from gangpao.evaluate.tasks.grade import Grader

_MODES = {"choice": "loglikelihood", "contexts": "loglikelihood", "word": "loglikelihood", "written": "generation"}
_LISTED_PROMPT = 20_000  # characters of a prompt in an item


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
    task: Task, harness: Harness, settings: Settings, source: DataSource, limit: int | None, tainted: set[int] | None
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """A row of our table. What could not be asked (too long, a choice without a token) is wrong, and is counted.

    tainted: places of docs that a training corpus holds.
    """
    asked, grader, chat = _prepared(task, settings, source, limit)
    found = _run(harness_task(asked, grader.grade if grader else None, chat=chat), harness, settings, chat)
    items = [_with_subject(_item(asked, sample, harness), sample["doc"]) for sample in found["samples"][task.name]]
    if grader:
        items = [_explained(item, doc, grader.grade) for item, doc in zip(items, asked.docs, strict=True)]
    seen = None if tainted is None else [doc["place"] in tainted for doc in asked.docs]
    left_out = Counter(flag for item in items for flag in set(item.flags) & {"too_long", "empty_choice"})
    metrics = list(dict.fromkeys(name for item in items for name in item.scores))
    assert task.main in metrics, (task.name, metrics)
    for name in sorted(metrics, key=lambda name: name != task.main):
        value, stderr = _value(name, [item.scores[name] for item in items if name in item.scores])
        result = TaskResult(
            task=task.benchmark, metric=name, value=value, stderr=stderr, items=len(items), of=asked.of,
            higher_is_better=name != "perplexity", mode=_MODES[task.how], shots=asked.shots, main=name == task.main,
            parts=_parts(asked, items, name), prompt_version=f"{task.name} {task.version}",
            grader=grader.name if grader else "", stop=[] if chat else list(task.stop), items_in=task.name, data=asked.origin,
            left_out=dict(left_out),
            thinking=_thinking(items) if task.how == "written" else None,
            contaminated=None if seen is None else sum(seen), clean_value=_clean(name, items, seen),
        )  # fmt: skip
        yield result, items if name == task.main else []


def foreign_task(name: str, harness: Harness, settings: Settings) -> Iterator[tuple[TaskResult, list[Item]]]:
    """One of lm-eval's own, or a group of them, by its own prompts, data and metrics. Raises ValueError for an unknown name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, [*TASKS, *manager.all_tasks], 4)
        raise ValueError(f"no task {name!r:.60}" + (f"; near it: {', '.join(near)}" if near else "") + "; see --list")
    found = _run(name, harness, settings, settings.chat, manager)
    for task, samples in found["samples"].items():
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        items = [_foreign_item(sample, harness) for sample in samples if sample["filter"] == filters[0]]
        config = found["configs"][task]
        values = {key: value for key, value in found["results"][task].items() if "," in key and "_stderr" not in key}
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            stderr = found["results"][task].get(f"{metric}_stderr,{kept}")
            yield TaskResult(
                task=task, metric=metric, value=float(value), stderr=stderr if isinstance(stderr, float) else None,
                items=len(items), of=found["n-samples"][task]["original"],
                higher_is_better=found["higher_is_better"][task].get(metric) is not False,
                mode="generation" if config["output_type"] == "generate_until" else "loglikelihood",
                shots=found["n-shot"].get(task) or 0, main=key == next(iter(values)),
                prompt_version=f"lm-eval {task} {found['versions'].get(task)}", grader=f"lm-eval, {kept}",
                data=str(config.get("dataset_path") or ""),
            ), items  # fmt: skip
            items = []


def _foreign_item(sample: dict[str, Any], harness: Harness) -> Item:
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    answers = []
    for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
        if isinstance(responses[0], str):
            answers += [Answer(text=text) for text in responses]
        elif isinstance(responses[0], (list, tuple)):
            answers.append(Answer(text=str(arguments[-1]), logprob=responses[0][0], greedy=responses[0][1]))
        else:
            answers.append(Answer(text="", logprob=float(responses[0])))
    prompt = str(sample["arguments"][0][0])[-_LISTED_PROMPT:]
    return Item(item=str(sample["doc_id"]), prompt=prompt, answers=answers, target=str(sample["target"]), scores=scores)


def _run(task: Any, harness: Harness, settings: Settings, chat: bool, manager: Any = None) -> dict[str, Any]:
    """lm-eval's results of a task: ours, whose docs are limited and have their examples already, or by name with its manager.

    lm-eval's `simple_evaluate` would index all its tasks and gather facts about the machine first, some 12 s each time.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    own = manager is None
    loaded = (TaskManager(include_defaults=False) if own else manager).load([task])
    for one in loaded["tasks"].values():
        if not own and settings.shots is not None:
            one.set_config(key="num_fewshot", value=settings.shots)
        elif one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=settings.seed)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = evaluate(
            harness, loaded, limit=None if own else settings.limit, bootstrap_iters=0 if own else 1000,
            apply_chat_template=chat, confirm_run_unsafe_code=settings.run_code,
        )  # fmt: skip
    assert found is not None
    results: dict[str, Any] = found
    return results


def _item(asked: Asked, sample: dict[str, Any], harness: Harness) -> Item:
    doc = sample["doc"]
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    if asked.task.how == "written":
        return _written_item(asked, sample, scores, harness)
    answers, flags = [], []
    for context, continuation in sample["arguments"]:
        score = harness.score_of(context, continuation)
        logprob = None if score.fault else score.logprob
        answers.append(Answer(text=continuation, logprob=logprob, greedy=score.greedy, tokens=score.tokens))
        flags += [score.fault] if score.fault else []
    if asked.task.how == "word":
        scores = {"acc": float(answers[0].greedy or False), "perplexity": answers[0].logprob or 0.0}
    if flags:
        scores = {name: 0.0 for name in scores if name != "perplexity"}
    target = sample["target"] if asked.task.how == "word" else doc["gold"]
    prompt = doc["prompt"] if asked.task.how != "contexts" else ""
    return Item(
        item=str(doc["number"]),
        prompt=prompt[-_LISTED_PROMPT:],
        ids=None if asked.task.how == "contexts" else harness.ids_of(sample["arguments"][0][0].rstrip()),
        answers=answers,
        target=target,
        scores=scores,
        flags=sorted(set(flags)),
    )


def _with_subject(item: Item, doc: Mapping[str, Any]) -> Item:
    """The item with its subject, if it has one: questions of a subject hang together, and comparisons count that."""
    subject = doc.get("subject")
    return item.model_copy(update={"extra": {**item.extra, "subject": subject}}) if subject else item


def _written_item(asked: Asked, sample: dict[str, Any], scores: dict[str, float], harness: Harness) -> Item:
    answer = harness.answer_of(*sample["arguments"][0])
    flags = []
    if answer.finish == "too_long":
        flags.append("too_long")
    if answer.in_thought:
        flags.append("at_limit_in_thought")
    elif answer.finish == "length":
        flags.append("at_limit")
    if not answer.text.strip() and answer.finish != "too_long":
        flags.append("empty_answer")
    extra: dict[str, Any] = (
        {"thinking": answer.thinking, "thinking_tokens": answer.thinking_tokens} if answer.thinking else {}
    )
    text = Answer(text=answer.text, tokens=answer.tokens, finish=answer.finish)
    return Item(
        item=str(sample["doc"]["number"]), prompt=str(sample["arguments"][0][0])[-_LISTED_PROMPT:],
        ids=harness.ids_of(*sample["arguments"][0]), answers=[text], target=sample["target"], scores=scores,
        flags=flags, extra=extra,
    )  # fmt: skip


def _explained(item: Item, doc: Doc, grade: Grade) -> Item:
    """With what the grader took for the answer, and why it is right or wrong."""
    said = {name: value for name, value in grade(doc, item.answers[0].text).items() if isinstance(value, str) and value}
    return item.model_copy(update={"extra": item.extra | said})


def _value(metric: str, values: Sequence[float]) -> tuple[float, float | None]:
    middle, error = sum(values) / len(values), mean_error(values)
    if metric != "perplexity":
        return middle, error
    return math.exp(-middle), error and math.exp(-middle) * error


def _clean(metric: str, items: Sequence[Item], seen: Sequence[bool] | None) -> float | None:
    """The value over items that were not seen."""
    kept = [
        item.scores[metric] for item, was in zip(items, seen or (), strict=False) if not was and metric in item.scores
    ]
    return _value(metric, kept)[0] if kept and seen is not None and any(seen) else None


def _parts(asked: Asked, items: Sequence[Item], metric: str) -> dict[str, float]:
    """The metric by subject."""
    by_subject: dict[str, list[float]] = defaultdict(list)
    for doc, item in zip(asked.docs, items, strict=True):
        if doc.get("subject") and metric in item.scores:
            by_subject[doc["subject"]].append(item.scores[metric])
    return {subject: sum(values) / len(values) for subject, values in sorted(by_subject.items())}


def _thinking(items: Sequence[Item]) -> Thinking | None:
    thoughts = [item.extra["thinking_tokens"] for item in items if "thinking_tokens" in item.extra]
    if not thoughts:
        return None
    count = len(items)
    return Thinking(
        answers=len(thoughts),
        mean_tokens=sum(thoughts) / len(thoughts),
        at_limit=sum("at_limit_in_thought" in item.flags for item in items) / count,
        empty=sum("empty_answer" in item.flags for item in items) / count,
    )
