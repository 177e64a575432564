"""A run: the model answers, judges mark, and a folder holds all of it.

    answers.jsonl       what the model said, in FastChat's form: a baseline for other runs, or for FastChat
    items-TASK.jsonl    every turn with its answer, every judgment of it and its mark
    results.json        the scores; radar.svg their picture by category

After kill -9 the same command goes on, and a further judge over the same answers costs its own requests only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gangpao import atomic
from gangpao.cost import show_yuan
from gangpao.evaluate.asked import identity_of
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.judge import marking, radar, scores
from gangpao.evaluate.judge.marking import Asking, Baseline, Judgment, Kind
from gangpao.evaluate.judge.prompts import Prompts
from gangpao.evaluate.judge.questions import WITH_REFERENCE, Question, QuestionSet
from gangpao.evaluate.judge.talk import Answers, Manner, converse, messages_of, turns_of
from gangpao.evaluate.models.price import Price
from gangpao.evaluate.models.protocol import Generated, Model, Usage
from gangpao.evaluate.results import Answer, Item, RunResult, TaskResult, Thinking, provenance, write_items, write_run
from gangpao.progress import Progress, Silent
from gangpao.units import show_count

NO_SUBSTITUTE = (
    "Marks are as good as the judge: a small local model is no substitute for the large judges behind published tables. "
    "Compare only runs with the same judge and the same prompts."
)
OWN_WORDS = "The judge's prompts are gangpao's own, so scores are not FastChat's (--judge-prompts takes others)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is judged, and how judges write. price: of the judges' tokens."""

    kind: Kind = "single"
    limit: int | None = None
    judge_tokens: int = 2048
    judge_temperature: float = 0.0
    price: Price | None = None
    language: radar.Language = "en"
    manner: Manner = field(default_factory=Manner)


@dataclass(slots=True)
class _Judged:
    """One judge and what it said."""

    name: str
    judgments: list[Judgment]

    def usage(self) -> Usage:
        """Tokens of all its answers, also of those that an earlier part of the run brought."""
        answers = [answer for judgment in self.judgments for answer in judgment.answers]
        return Usage(sum(a.prompt_tokens for a in answers), 0, sum(a.tokens for a in answers))


def run(
    model: Model,
    judges: Sequence[Model],
    questions: QuestionSet,
    prompts: Prompts,
    settings: Settings,
    out: Path,
    *,
    baseline: Baseline | None = None,
    quiet: bool = False,
) -> RunResult:
    """Ask everything, or what is still missing, and write the folder. Raises ValueError saying what to do."""
    chosen = questions.limited(settings.limit)
    _check(chosen.questions, settings.kind, baseline)
    started = time.monotonic()
    identity = {"judged": identity_of(model), "questions": questions.name, **model.settings}
    with Journal(out, identity) as journal:
        before = journal.take("seconds", float) or 0.0
        try:
            with _Shown("answers", turns_of(chosen.questions), None, quiet) as shown:
                answers = converse(model, chosen.questions, journal, settings.manner, shown)
            _write_answers(out, model.facts.name, answers)
            asked = marking.askings(
                settings.kind, chosen.questions, answers, baseline, prompts,
                max_tokens=settings.judge_tokens, temperature=settings.judge_temperature,
            )  # fmt: skip
            judged = [
                _judged(judge, name, settings, asked, prompts, journal, quiet) for name, judge in _named(judges).items()
            ]
        finally:
            journal.put("seconds", before + time.monotonic() - started)
        seconds, damaged = journal.get("seconds"), journal.warnings
    tasks = _scores(judged, chosen, questions, settings, prompts, answers)
    write_items(out, questions.name, _items(chosen.questions, answers, judged, settings.kind, baseline))
    result = _result(model, judged, questions, prompts, settings, tasks, answers, seconds)
    result = result.model_copy(update={"notes": [*result.notes, *damaged]})
    write_run(out, result)
    if len(tasks[0].parts) >= radar.FEWEST:
        try:
            radar.draw(out / "radar.svg", {model.facts.name: tasks[0].parts}, tasks[0].scale, settings.language)
        except ValueError as error:  # no matplotlib: the numbers are there
            result = result.model_copy(update={"notes": [*result.notes, f"no radar plot: {error}"]})
            write_run(out, result)
    return result


def _check(questions: Sequence[Question], kind: Kind, baseline: Baseline | None) -> None:
    if kind == "single":
        return
    if kind == "arena" and any(len(q.turns) > 1 for q in questions):
        raise ValueError("--arena is for single prompts; conversations of two turns are compared with --pairwise")
    missing = [q.id for q in questions if len((baseline or {}).get(q.id, ())) < len(q.turns)]
    if missing:
        raise ValueError(
            f"the baseline has no answer, or not to every turn, for {len(missing)} of {len(questions)} questions: "
            f"{', '.join(missing[:5])}"
        )


def _named(judges: Sequence[Model]) -> dict[str, Model]:
    """By name, and by address where two have the same."""
    names = [judge.facts.name for judge in judges]
    return {f"{n} at {j.facts.url}" if names.count(n) > 1 else n: j for n, j in zip(names, judges, strict=True)}


def _judged(
    judge: Model,
    name: str,
    settings: Settings,
    asked: Sequence[Asking],
    prompts: Prompts,
    journal: Journal,
    quiet: bool,
) -> _Judged:
    with _Shown(f"judgments by {name}", len(asked), settings.price, quiet) as shown:
        return _Judged(name, marking.judge(judge, settings.kind, asked, prompts, journal, shown))


class _Shown:
    """Counts answers on the progress line, with their tokens and price."""

    def __init__(self, label: str, total: int, price: Price | None, quiet: bool) -> None:
        self._label, self._total, self._price = label, total, price
        self._done, self._usage = 0, Usage()
        self._progress = Silent() if quiet else Progress(show=show_count, more=self._more)

    def __enter__(self) -> Callable[[Generated, bool], None]:
        self._progress.start(self._label, self._total)
        return self._take

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def _take(self, answer: Generated, fresh: bool) -> None:
        self._done += 1
        if not fresh:  # the time left is that of what is asked for
            self._progress.start(self._label, self._total, min(self._done, self._total))
        self._usage.prompt += answer.prompt_tokens
        self._usage.completion += answer.tokens
        self._progress.update(min(self._done, self._total))

    def _more(self, _: float) -> str:
        tokens = f"{show_count(self._usage.prompt)} + {show_count(self._usage.completion)} tokens"
        return tokens if self._price is None else f"{tokens}, {show_yuan(self._price.yuan(self._usage))}"


# --- what comes of it


def _scores(
    judged: Sequence[_Judged],
    chosen: QuestionSet,
    questions: QuestionSet,
    settings: Settings,
    prompts: Prompts,
    answers: Answers,
) -> list[TaskResult]:
    turns = turns_of(questions.questions) * (2 if settings.kind == "arena" else 1)
    tasks: list[TaskResult] = []
    for number, one in enumerate(judged):
        grader = f"judge {one.name}, prompts {prompts.version} {prompts.digest}"
        place = scores.Place(questions.name, turns, grader, f"{prompts.version} {prompts.digest}", questions.source)
        name = "" if number == 0 else "_second_judge"
        found = scores.results(settings.kind, one.judgments, place, main=number == 0, name=name)
        if number == 0:
            found[0] = found[0].model_copy(update={"thinking": _thinking(answers)})
        tasks += found
    if len(judged) == 2:
        grader = " and ".join(one.name for one in judged)
        place = scores.Place(questions.name, turns, grader, "", questions.source)
        tasks += scores.agreements(settings.kind, judged[0].judgments, judged[1].judgments, place)
    return tasks


def _thinking(answers: Answers) -> Thinking | None:
    texts = [answer for turns in answers.values() for answer in turns]
    thought = [answer.thinking_tokens for answer in texts if answer.thinking or answer.in_thought]
    if not thought:
        return None
    return Thinking(
        answers=len(thought), mean_tokens=sum(thought) / len(thought),
        at_limit=sum(a.in_thought for a in texts) / len(texts),
        empty=sum(not a.text.strip() for a in texts) / len(texts),
    )  # fmt: skip


def _items(
    questions: Sequence[Question],
    answers: Answers,
    judged: Sequence[_Judged],
    kind: Kind,
    baseline: Baseline | None,
) -> list[Item]:
    said: dict[tuple[str, int], list[tuple[int, str, Judgment]]] = {}
    for number, one in enumerate(judged):
        for judgment in one.judgments:
            key = judgment.asking.question.id, judgment.asking.turn
            said.setdefault(key, []).append((number, one.name, judgment))
    items = []
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            answer, found = answers[question.id][turn - 1], said[question.id, turn]
            first = scores.outcomes(kind, [judgment for number, _, judgment in found if number == 0])
            metric = "score" if kind == "single" else "win_rate"
            extra: dict[str, Any] = {
                "category": question.category,
                "judgments": [
                    {
                        "judge": name, "swapped": j.asking.swapped, "value": j.value, "text": j.text, "again": j.again,
                        "prompt": list(j.asking.prompt.messages or ()),
                    }
                    for _, name, j in found
                ],
            }  # fmt: skip
            if baseline:
                extra["baseline"] = baseline[question.id][turn - 1]
            items.append(
                Item(
                    item=f"{question.id}/{turn}",
                    prompt=messages_of(question, turn - 1, answers[question.id]),
                    answers=[Answer(text=answer.text, tokens=answer.tokens, finish=answer.finish)],
                    target=question.reference[turn - 1] if question.reference else None,
                    scores={metric: scores.mean(first)} if first else {},
                    flags=[*_flags(answer), *sorted({j.missing for _, _, j in found if j.missing})],
                    extra=extra,
                )
            )
    return items


def _flags(answer: Generated) -> list[str]:
    flags = {
        "too_long": answer.finish == "too_long", "at_limit": answer.finish == "length",
        "in_thought": answer.in_thought, "empty_answer": not answer.text.strip(),
    }  # fmt: skip
    return [name for name, given in flags.items() if given]


def _write_answers(out: Path, name: str, answers: Answers) -> None:
    rows = (
        {"question_id": question, "model_id": name, "choices": [{"index": 0, "turns": [a.text for a in turns]}]}
        for question, turns in answers.items()
    )
    with atomic.new_file(out / "answers.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _result(
    model: Model,
    judged: Sequence[_Judged],
    questions: QuestionSet,
    prompts: Prompts,
    settings: Settings,
    tasks: list[TaskResult],
    answers: Answers,
    seconds: float,
) -> RunResult:
    texts = [answer for turns in answers.values() for answer in turns]
    usage = {one.name: one.usage() for one in judged}
    return RunResult(
        **provenance(),
        model=model.facts,
        suite="judge",
        limit=settings.limit,
        settings={
            **dict(model.settings), **asdict(settings.manner), "kind": settings.kind,
            "temperatures": {q.category: q.temperature for q in questions.questions},
            "judges": [one.name for one in judged], "judge_tokens": settings.judge_tokens,
            "judge_temperature": settings.judge_temperature, "judge_prompts": f"{prompts.version} {prompts.digest}",
            "judge_usage": {name: {"prompt": u.prompt, "completion": u.completion} for name, u in usage.items()},
        },
        tasks=tasks,
        seconds=round(seconds, 1),
        tokens={
            "prompt": sum(a.prompt_tokens for a in texts), "cached": 0, "completion": sum(a.tokens for a in texts),
        },
        notes=_notes(judged, questions, prompts, settings, tasks, usage),
    )  # fmt: skip


def _notes(
    judged: Sequence[_Judged],
    questions: QuestionSet,
    prompts: Prompts,
    settings: Settings,
    tasks: Sequence[TaskResult],
    usage: dict[str, Usage],
) -> list[str]:
    notes = [NO_SUBSTITUTE, *([OWN_WORDS] if prompts.version.startswith("gangpao-") else [])]
    bare = [q for q in questions.questions if q.category in WITH_REFERENCE and not q.reference]
    if bare:
        notes.append(f"{len(bare)} questions of {', '.join(WITH_REFERENCE)} were judged without a reference answer.")
    for one in judged:
        lost, again = sum(bool(j.missing) for j in one.judgments), sum(j.again for j in one.judgments)
        notes.append(
            f"{one.name}: {len(one.judgments) - lost} of {len(one.judgments)} judgments hold a verdict; {again} were asked "
            "for twice."
        )
        if settings.kind != "single":
            low, high = scores.interval(scores.outcomes(settings.kind, one.judgments))
            notes.append(f"{one.name}: win rate from {low:.3f} to {high:.3f} (95 %, bootstrap over questions).")
        if settings.price is not None:
            notes.append(f"{one.name} cost {show_yuan(settings.price.yuan(usage[one.name]))}.")
    return notes
