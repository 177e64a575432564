"""A run over files of questions about pictures: asks, marks, and leaves results.json with a line for each question.

exact_match     the answer is the row's, but for space around it and a full stop behind it
characters      1 - edits / length of the longer one, the mean over answers: how much of a text was read
text_found      see choose.py, of files whose answers to a question differ enough for a group
picture_found
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gangpao.cost import Meter
from gangpao.engine.score import Scorer
from gangpao.evaluate.asked import ask, identity_of
from gangpao.evaluate.journal import Journal, key_of
from gangpao.evaluate.models.protocol import Generated, Model, Prompt
from gangpao.evaluate.results import Answer, Item, RunResult, TaskResult, provenance, write_items, write_run
from gangpao.evaluate.sight import choose
from gangpao.evaluate.sight.rows import Question
from gangpao.evaluate.statistics import clustered_error, share_error
from gangpao.progress import Progress, Silent

GRADER = "gangpao-pictures 1"
NOTE = "Each question is asked on its own. Standard errors of answers are over rows."


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """among: pictures of a group; 0: nothing is looked for. max_tokens: of an answer. profile: what the machine costs."""

    among: int = 10
    max_tokens: int = 64
    limit: int | None = None
    profile: str | None = None


def run(
    model: Model,
    parts: Mapping[str, Sequence[Question]],
    settings: Settings,
    out: Path,
    progress: Progress | None = None,
) -> RunResult:
    """Ask what is still missing, and write the folder. parts: questions by the name of their file. Raises ValueError for a folder
    with answers of another model, and as the model does."""
    progress, meter, begun = progress or Silent(), Meter(settings.profile), time.monotonic()
    engine = getattr(model, "engine", None)
    tasks, notes = [], [NOTE]
    with Journal(out, {"model": identity_of(model), "grader": GRADER, **model.settings}) as journal:
        before = journal.take("seconds", float) or 0.0
        try:
            for name, questions in parts.items():
                answers = _answers(model, name, questions, settings, journal, progress)
                items = _items(questions, answers)
                write_items(out, name, items)
                tasks += _marked(name, items)
                chosen = choose.groups(questions, settings.among) if settings.among and engine is not None else []
                if chosen and engine is not None and engine.seeing.sight.vision.canvas:
                    notes.append(f"{name}: texts are not looked for by a model that has pictures on a canvas.")
                elif chosen:
                    found, left = _looked_for(model, name, chosen, journal, progress)
                    tasks += found
                    notes.append(f"{name}: one of {settings.among} is found by chance in {1 / settings.among:.1%}.")
                    notes += [f"{name}: {left} groups do not fit into the context and are left out."] if left else []
        finally:
            journal.put("seconds", before + time.monotonic() - begun)
        seconds = journal.get("seconds")
        notes += journal.warnings
    result = RunResult(
        **provenance(), model=model.facts, suite="pictures", limit=settings.limit,
        settings={"max_tokens": settings.max_tokens, "among": settings.among, "cost_profile": meter.name, **model.settings},
        tasks=tasks, seconds=seconds, yuan=meter.yuan(seconds), notes=notes,
        tokens={"prompt": model.usage.prompt, "cached": model.usage.cached, "completion": model.usage.completion},
    )  # fmt: skip
    write_run(out, result)
    return result


def _answers(
    model: Model, name: str, questions: Sequence[Question], settings: Settings, journal: Journal, progress: Progress
) -> list[Generated]:
    prompts = [Prompt(messages=q.messages, max_tokens=settings.max_tokens, pictures=q.pictures) for q in questions]
    progress.start(name, len(prompts))
    done = 0

    def count(_: Generated, __: bool) -> None:
        nonlocal done
        done += 1
        progress.update(done)

    return ask(model, prompts, journal, count)


def right(said: str, wanted: str) -> bool:
    """Whether an answer is the row's."""
    return said.strip().rstrip(".。") == wanted.strip().rstrip(".。")


def read(said: str, wanted: str) -> float:
    """How much of a text was read: 1 - edits / length of the longer one."""
    said, wanted = said.strip(), wanted.strip()
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return 1 - row[-1] / max(len(said), len(wanted), 1)


def _marked(name: str, items: Sequence[Item]) -> list[TaskResult]:
    """The scores of all items, by what they were asked too."""
    by_row = [item.item.rpartition(",")[0] for item in items]
    too_long = sum("too_long" in item.flags for item in items)
    out = []
    for metric in ("exact_match", "characters"):
        values, main = [item.scores[metric] for item in items], metric == "exact_match"
        by_words: dict[str, list[float]] = {}
        for item in items if main else ():
            by_words.setdefault(str(item.prompt), []).append(item.scores[metric])
        out.append(TaskResult(
            task=name, metric=metric, value=sum(values) / len(values), stderr=clustered_error(values, by_row),
            items=len(values), of=len(values), mode="generation", main=main, grader=GRADER,
            parts={w: sum(v) / len(v) for w, v in sorted(by_words.items())}, left_out={"too_long": too_long} if too_long else {},
        ))  # fmt: skip
    return out


def _looked_for(
    model: Model, name: str, chosen: Sequence[Sequence[Question]], journal: Journal, progress: Progress
) -> tuple[list[TaskResult], int]:
    """Scores, and how many groups do not fit into the context."""
    progress.start(f"{name}, looked for", len(chosen))
    engine = model.engine  # type: ignore[attr-defined]
    scorer = Scorer(engine)
    every: list[choose.Found] = []
    for number, group in enumerate(chosen, 1):
        shown = [[hashlib.sha256(picture.data).hexdigest() for picture in q.pictures.values()] for q in group]
        key = key_of("among", identity_of(model), shown, [[q.messages, q.wanted] for q in group])
        rows = journal.take(key, lambda value: np.array(value, float))
        if rows is None or rows.shape != (len(group), len(group)):
            rows = choose.likelihoods(engine, scorer, group)
            if rows is not None:
                journal.put(key, rows.tolist())
        every += [choose.found(rows)] if rows is not None else []
        progress.update(number)
    out = []
    for metric, values in (
        ("text_found", [x for found in every for x in found.texts]),
        ("picture_found", [x for found in every for x in found.pictures]),
    ):
        share = sum(values) / max(1, len(values))
        out.append(TaskResult(
            task=name, metric=metric, value=share, stderr=share_error(share, len(values)), items=len(values),
            of=len(values), mode="loglikelihood", main=False, grader=GRADER,
        ))  # fmt: skip
    return (out if every else []), len(chosen) - len(every)


def _items(questions: Sequence[Question], answers: Sequence[Generated]) -> list[Item]:
    return [
        Item(
            item=question.where, prompt=question.words, target=question.wanted,
            answers=[Answer(text=answer.text, tokens=answer.tokens, finish=answer.finish)],
            scores={"exact_match": float(right(answer.text, question.wanted)), "characters": read(answer.text, question.wanted)},
            flags=[{"length": "at_limit"}.get(answer.finish, answer.finish)] if answer.finish != "stop" else [],
        )
        for question, answer in zip(questions, answers, strict=True)
    ]  # fmt: skip
