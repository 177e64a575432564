"""Questions, reference answers and answers of other models, as they are published: JSON lines, zstd or not.

    question      question_id, category, turns (MT-Bench); or uid or question_id, category, prompt or turns (Arena-Hard)
    reference     question_id, choices[0].turns, one a turn: what a judge sees beside an answer to reasoning, mathematics and code
    answer        the same with model_id; a run of ours writes answers.jsonl in this form

MT-Bench's question file has a field `reference`, too; the judge does not use it, as FastChat's does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gangpao.data.sources.files import read_rows
from gangpao.evaluate.journal import key_of

SAMPLE = Path(__file__).with_name("sample")
_QUESTIONS = ("mt_bench.jsonl", "question.jsonl", "questions.jsonl")
_REFERENCES = ("mt_bench_reference.jsonl", "reference.jsonl", "reference_answer/gpt-4.jsonl")
MT_BENCH = {str(number) for number in range(81, 161)}
# FastChat's, by category; whatever it does not name is answered at 0.7, and single prompts (arena-hard) at 0.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
# Categories whose published judgments had a reference beside the answer.
WITH_REFERENCE = ("reasoning", "math", "coding")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, turn by turn, and right answers to it where there are any."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """At which a model answers it, as published."""
        return 0.0 if len(self.turns) == 1 else TEMPERATURES.get(self.category, 0.7)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions in their order. source: which files, and a digest of what is in them."""

    name: str
    questions: tuple[Question, ...]
    source: str
    whole: int  # questions without a limit

    def limited(self, limit: int | None) -> QuestionSet:
        """So many of them, from every category in turn, in the order of the file."""
        if limit is None or limit >= len(self.questions):
            return self
        by_category: dict[str, list[Question]] = {}
        for question in self.questions:
            by_category.setdefault(question.category, []).append(question)
        turns = (one for row in zip_longest(*by_category.values()) for one in row if one is not None)
        chosen = {next(turns).id for _ in range(limit)}
        kept = tuple(q for q in self.questions if q.id in chosen)
        return QuestionSet(self.name, kept, self.source, self.whole)


def load(path: Path | None, references: Path | None = None) -> QuestionSet:
    """The questions of a file or a folder, or our own few. Raises ValueError naming the file, the row and what is wrong with it."""
    path = path or SAMPLE
    file = _in(path, _QUESTIONS) if path.is_dir() else path
    if file is None:
        raise ValueError(f"{path}: no questions there; they are in {' or '.join(_QUESTIONS)}, also with .zst")
    if references is None:
        references = _in(path if path.is_dir() else path.parent, _REFERENCES)
    right = read_answers(references) if references else {}
    questions = tuple(_question(row, number, file, right) for number, row in _rows(file))
    if not questions:
        raise ValueError(f"{file}: no question in it")
    if twice := _twice(q.id for q in questions):
        raise ValueError(f"{file}: question {twice} is there twice")
    digest = key_of([[q.id, q.category, q.turns, q.reference] for q in questions])
    named = [file.name, *([references.name] if right and references else [])]
    return QuestionSet(_name(path, file, questions), questions, f"{', '.join(named)}, digest {digest}", len(questions))


def _name(path: Path, file: Path, questions: Sequence[Question]) -> str:
    """What tables call the set."""
    if path == SAMPLE:
        return "judge_sample"
    if {q.id for q in questions} <= MT_BENCH and all(len(q.turns) == 2 for q in questions):
        return "mt_bench"
    return file.name.partition(".")[0]


def _question(row: Mapping[str, Any], number: int, file: Path, right: Mapping[str, tuple[str, ...]]) -> Question:
    turns = row.get("turns", row.get("prompt"))
    texts = tuple(map(_text, [turns] if isinstance(turns, str) else turns if isinstance(turns, list) else []))
    if not 1 <= len(texts) <= 2 or not all(texts):
        raise ValueError(f"{file}:{number}: a question has one or two texts as turns, or one as prompt")
    name = _id(row) or str(number)
    reference = right.get(name, ())
    if reference and len(reference) < len(texts):
        raise ValueError(
            f"{file}:{number}: the reference to question {name} has {len(reference)} of {len(texts)} turns"
        )
    return Question(name, str(row.get("category") or "all"), texts, reference)


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Texts by question: of a file of answers or references, or of a run's folder. Raises ValueError saying what is wrong."""
    file = path / "answers.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no answers there; give a run of `gangpao eval judge` or a file of FastChat's form")
    answers = {}
    for number, row in _rows(file):
        choices = row.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else row.get("messages")
        texts = [_text(turn) for turn in turns if _speaks(turn)] if isinstance(turns, list) else []
        name = _id(row)
        if not name or not texts:
            raise ValueError(f"{file}:{number}: an answer has question_id (or uid) and choices[0].turns (or messages)")
        answers[name] = tuple(texts)
    return answers


def _speaks(turn: Any) -> bool:
    return not isinstance(turn, dict) or turn.get("role", "assistant") == "assistant"


def _text(turn: Any) -> str:
    """A turn's text: by itself, as content, or as the answer in a content (Arena-Hard)."""
    for name in ("content", "answer"):
        if isinstance(turn, dict):
            turn = turn.get(name, turn)
    return turn if isinstance(turn, str) else ""


def _id(row: Mapping[str, Any]) -> str:
    found = row.get("question_id", row.get("uid"))
    return "" if found is None else str(found)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    for row in read_rows(file, "jsonl"):
        if not isinstance(row.value, dict):
            raise ValueError(f"{file}:{row.number}: {row.wrong or 'is no JSON object'}")
        yield row.number, row.value


def _in(folder: Path, names: Iterable[str]) -> Path | None:
    files = (folder / (name + ending) for name in names for ending in ("", ".zst"))
    return next((file for file in files if file.is_file()), None)


def _twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
