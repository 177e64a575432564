"""Single items to look at: of two runs those that they decide differently, of one run some that it did worst on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from gangpao.evaluate.report import compare
from gangpao.evaluate.report.page.document import Block, Fold, Heading, Paragraph, Verbatim, line
from gangpao.evaluate.report.page.given import Given
from gangpao.evaluate.report.runs import Run
from gangpao.evaluate.results import Answer, Item, TaskResult

MOST_OF_PROMPT = 1200  # characters, the last ones
MOST_OF_ANSWER = 1200
MOST_ANSWERS = 12


def singles(given: Given) -> list[Block]:
    """A fold for each task. Of more than two runs the first two are compared."""
    if not given.items:
        return []
    folds: list[Block] = []
    for score in compare.shown(given.runs[0]):
        other = compare.matching(given.runs[1].result.tasks, score, given.published) if len(given.runs) > 1 else None
        fold = _worst(given, score) if other is None else _changed(given, score, other)
        folds += [fold] if fold else []
    body = folds or [Paragraph(given.say("no_items"))]
    return [Heading(2, given.say("singles")), *body]


def _changed(given: Given, score: TaskResult, other: TaskResult) -> Fold | None:
    first, second = given.runs[:2]
    ours, theirs = first.found(score), second.found(other)
    common = [name for name in ours if name in theirs]
    sign = 1 if score.higher_is_better else -1
    gain = {name: sign * (theirs[name].score - ours[name].score) for name in common}
    changed = [name for name in common if gain[name]]
    if not common:
        return None
    losses, gains = ([n for n in changed if (gain[n] < 0) == lost] for lost in (True, False))
    # What the second run lost first, the largest differences first.
    chosen = sorted(losses, key=lambda n: gain[n])[: (given.items + 1) // 2]
    chosen += sorted(gains, key=lambda n: -gain[n])[: given.items - len(chosen)]
    values = {"first": line(first.label), "second": line(second.label), "a": f"{len(losses):,}", "b": f"{len(gains):,}"}
    said = Paragraph(given.say("changed_said", **values, n=len(chosen)))
    title = given.say("changed", task=line(given.title(score.task)), n=f"{len(changed):,}", items=f"{len(common):,}")
    return Fold(title, [said, *_shown(given, ((first, score), (second, other)), chosen)])


def _worst(given: Given, score: TaskResult) -> Fold | None:
    run = given.runs[0]
    found = run.found(score)
    worst = sorted(found, key=lambda name: found[name].score, reverse=not score.higher_is_better)
    if score.higher_is_better:
        worst = [name for name in worst if found[name].score < score.scale]
    if not worst:
        return None
    title = given.say("worst", task=line(given.title(score.task)))
    return Fold(title, _shown(given, ((run, score),), worst[: given.items]))


def _shown(given: Given, runs: Sequence[tuple[Run, TaskResult]], names: Sequence[str]) -> list[Block]:
    """Items by name with what each run answered; their files are read through once."""
    picked = [_picked(run.items(score), set(names)) for run, score in runs]
    blocks: list[Block] = []
    for name in names:
        first = picked[0][name]
        inner: list[Block] = [
            Paragraph(given.say("asked_item")),
            Verbatim(_end(given, prompt_text(first), MOST_OF_PROMPT)),
            Paragraph(given.say("target", target=line(first.target, 300))),
        ]
        for (run, score), items in zip(runs, picked, strict=True):
            item = items[name]
            value = f"{score.metric} {item.scores[score.metric]:g}"
            flags = f" ({', '.join(item.flags)})" if item.flags else ""
            inner.append(Paragraph(given.say("score_of", run=line(run.label), score=line(value + flags))))
            inner.append(Verbatim("\n".join(_answer(given, a) for a in item.answers[:MOST_ANSWERS])))
        blocks.append(Fold(line(given.say("item", item=name)), inner))
    return blocks


def _picked(items: Iterable[Item], names: set[str]) -> dict[str, Item]:
    return {item.item: item for item in items if item.item in names}


def prompt_text(item: Item) -> str:
    """A prompt as text; of messages, role and content below one another."""
    if isinstance(item.prompt, str):
        return item.prompt
    lines = []
    for message in item.prompt:
        content = message.get("content", "")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        lines.append(f"{message.get('role', '?')}: {text}")
    return "\n".join(lines)


def _end(given: Given, text: str, most: int) -> str:
    return text if len(text) <= most else f"{given.say('cut', n=f'{len(text) - most:,}')}\n{text[-most:]}"


def _answer(given: Given, answer: Answer) -> str:
    more = len(answer.text) - MOST_OF_ANSWER
    text = answer.text if more <= 0 else answer.text[:MOST_OF_ANSWER] + given.say("cut", n=f"{more:,}")
    return text if answer.logprob is None else f"{answer.logprob:10.3f}  {text}"
