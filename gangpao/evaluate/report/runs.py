"""A run as it is given to a report: one of our folders, or results of lm-eval, under a name that no other run of the report has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gangpao import atomic
from gangpao.evaluate.report import lm_eval
from gangpao.evaluate.results import Item, RunResult, TaskResult, read_items, read_run


@dataclass(frozen=True, slots=True)
class Scored:
    """What a comparison needs of an item. subject: of which items hang together; empty where nothing says so."""

    score: float
    target: str
    subject: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """label: the name in tables. path: results.json, or a results file of lm-eval."""

    label: str
    result: RunResult
    path: Path
    foreign: bool = False
    _found: dict[tuple[str, str], dict[str, Scored]] = field(default_factory=dict)

    def items(self, score: TaskResult) -> Iterator[Item]:
        """The items behind a score, read anew each time; none where their file is not there."""
        name = score.items_in or score.task
        if self.foreign:
            yield from lm_eval.read_samples(self.path, name)
        elif (self.path.parent / f"items-{name}.jsonl").is_file():
            yield from read_items(self.path.parent, name)

    def found(self, score: TaskResult) -> dict[str, Scored]:
        """The items of a task that have this score, by name."""
        key = (score.items_in or score.task, score.metric)
        if key not in self._found:
            self._found[key] = {
                item.item: Scored(item.scores[score.metric], str(item.target), subject_of(item), tuple(item.flags))
                for item in self.items(score)
                if score.metric in item.scores
            }
        return self._found[key]

    def scores(self, score: TaskResult) -> dict[str, Scored]:
        """The same, if their mean is the score; else nothing, for then it is not made of them (a perplexity, a mean of subjects,
        another mode)."""
        found = self.found(score)
        mean = sum(one.score for one in found.values()) / len(found) if found else float("nan")
        return found if abs(mean - score.value) <= 1e-6 * max(1.0, abs(score.value)) else {}


def subject_of(item: Item) -> str:
    """What an item belongs to with others: extra["subject"], ["category"] or ["cluster"]."""
    return str(next((item.extra[key] for key in ("subject", "category", "cluster") if item.extra.get(key)), ""))


def read(paths: Sequence[Path]) -> list[Run]:
    """Runs under names of their own. Raises ValueError naming a path that is none."""
    found = [_read(path) for path in paths]
    labels = _labels([(path, result) for path, result, _ in found])
    return [Run(label, result, path, foreign) for label, (path, result, foreign) in zip(labels, found, strict=True)]


def _read(path: Path) -> tuple[Path, RunResult, bool]:
    if path.is_dir():
        ours, theirs = path / "results.json", lm_eval.newest(path)
        if not ours.is_file() and theirs is None:
            inner = [one for one in sorted(path.iterdir()) if one.is_dir() and lm_eval.newest(one)]
            theirs = lm_eval.newest(inner[0]) if len(inner) == 1 else None
            if len(inner) > 1:
                raise ValueError(f"{path}: results of {len(inner)} models; name one: {', '.join(map(str, inner))}")
        path = theirs if theirs is not None and not ours.is_file() else ours
    if path.is_file() and lm_eval.is_lm_eval(atomic.read_json(path)):
        return path, lm_eval.read_results(path), True
    return path, read_run(path.parent if path.name == "results.json" else path), False


def _labels(found: Sequence[tuple[Path, RunResult]]) -> list[str]:
    """The model's name; where two have the same, with what tells them apart: weight type, suite, folder, number."""
    facts = [
        (result.model.name, result.model.quantization, result.suite, path.parent.name, f"#{number}")
        for number, (path, result) in enumerate(found, 1)
    ]
    labels = []
    for mine in facts:
        rivals, parts = [f for f in facts if f is not mine and f[0] == mine[0]], [mine[0]]
        for place in range(1, len(mine)):
            if not rivals:
                break
            if any(rival[place] != mine[place] for rival in rivals):
                parts.append(mine[place] or "-")
                rivals = [rival for rival in rivals if rival[place] == mine[place]]
        labels.append(" ".join(parts))
    return labels
