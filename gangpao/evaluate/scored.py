"""What lm-eval says of a task's answers, as results: scores, standard errors, parts, and what was not an ordinary answer."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.evaluate.results import Answer, Item, TaskResult, Thinking
from gangpao.evaluate.tasks.build import Asked, ask, harness_task
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import Task

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness
    from gangpao.evaluate.run import Settings

_MODES = {"choice": "loglikelihood", "contexts": "loglikelihood", "word": "loglikelihood", "written": "generation"}
_LISTED_PROMPT = 20_000  # characters of a prompt in an item


def own_task(
    task: Task, harness: Harness, settings: Settings, source: DataSource, limit: int | None
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """A row of our table. What could not be asked (too long, a choice without a token) is wrong, and is counted."""
    from gangpao.evaluate.tasks.grade import grader_of

    asked = ask(task, source, limit=limit, shots=settings.shots, chat=settings.chat)
    grader = grader_of(task, run_code=settings.run_code, chat=settings.chat) if task.grader else None
    samples = _run(harness_task(asked, grader.grade if grader else None), harness, settings)
    items = [_item(asked, sample, harness) for sample in samples[task.name]]
    left_out = Counter(flag for item in items for flag in set(item.flags) & {"too_long", "empty_choice"})
    metrics = list(dict.fromkeys(name for item in items for name in item.scores))
    for name in sorted(metrics, key=lambda name: name != task.main):
        value, stderr = _value(name, [item.scores[name] for item in items if name in item.scores])
        result = TaskResult(
            task=task.benchmark, metric=name, value=value, stderr=stderr, items=len(items), of=asked.of,
            higher_is_better=name != "perplexity", mode=_MODES[task.how], shots=asked.shots, main=name == task.main,
            parts=_parts(asked, items, name), prompt_version=f"{task.name} {task.version}",
            grader=grader.name if grader else "", stop=list(task.stop), data=asked.origin, left_out=dict(left_out),
            thinking=_thinking(items) if task.how == "written" else None,
        )  # fmt: skip
        yield result, items
        items = items if name != metrics[-1] else []


def foreign_task(name: str, harness: Harness, settings: Settings) -> Iterator[tuple[TaskResult, list[Item]]]:
    """One of lm-eval's own, by its own prompts, data and metrics."""
    raise NotImplementedError


def _run(task: Any, harness: Harness, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's samples of a task, by its name."""
    from lm_eval import simple_evaluate

    with contextlib.redirect_stdout(io.StringIO()):
        found = simple_evaluate(
            model=harness, model_args={"pretrained": harness.model.facts.name}, tasks=[task], bootstrap_iters=0,
            log_samples=True, apply_chat_template=settings.chat, random_seed=None, numpy_random_seed=None,
            torch_random_seed=None, fewshot_random_seed=settings.seed, confirm_run_unsafe_code=settings.run_code,
        )  # fmt: skip
    assert found is not None
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples


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
        answers=answers,
        target=target,
        scores=scores,
        flags=sorted(set(flags)),
    )


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
    extra |= {name: sample[name] for name in sample["metrics"] if isinstance(sample[name], str)}
    text = Answer(text=answer.text, tokens=answer.tokens, finish=answer.finish)
    return Item(
        item=str(sample["doc"]["number"]), prompt=str(sample["arguments"][0][0])[-_LISTED_PROMPT:], answers=[text],
        target=sample["target"], scores=scores, flags=flags, extra=extra,
    )  # fmt: skip


def _value(metric: str, values: Sequence[float]) -> tuple[float, float | None]:
    from gangpao.evaluate.run import mean

    if metric != "perplexity":
        return mean(values)
    middle, error = mean(values)
    return math.exp(-middle), error and math.exp(-middle) * error


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
