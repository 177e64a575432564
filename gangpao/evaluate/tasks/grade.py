"""Answers that were written -> scores, by the graders in `graders/`, each with its name and version for the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gangpao.evaluate.graders import bbh, choice, code, maths
from gangpao.evaluate.graders.cage.parent import check as check_cage
from gangpao.evaluate.graders.grade import Grade
from gangpao.evaluate.graders.instructions.follow import GRADER as INSTRUCTIONS
from gangpao.evaluate.graders.instructions.follow import follow
from gangpao.evaluate.graders.instructions.prompts import instructions_of
from gangpao.evaluate.tasks.docs import LETTERS, Doc
from gangpao.evaluate.tasks.table import Task

Scores = Mapping[str, float | str]
_Graded = Callable[[Doc, str, bool], Grade]  # doc, answer, whether it was asked in a conversation


@dataclass(frozen=True, slots=True)
class Grader:
    """name: with its version. grade: doc and answer -> the task's metric, and what was taken for the answer."""

    name: str
    grade: Callable[[Doc, str], Scores]


def _choice(doc: Doc, answer: str, chat: bool) -> Grade:
    return choice.grade(answer, LETTERS[doc["gold"]], LETTERS[: len(doc["choices"])], doc["choices"])


def _bbh(doc: Doc, answer: str, chat: bool) -> Grade:
    return bbh.grade(answer, doc["target"], direct=True)


def _bbh_steps(doc: Doc, answer: str, chat: bool) -> Grade:
    return bbh.grade(answer, doc["target"])


def _gsm8k(doc: Doc, answer: str, chat: bool) -> Grade:
    return maths.gsm8k(answer, doc["target"])


def _math(doc: Doc, answer: str, chat: bool) -> Grade:
    return maths.math(answer, doc.get("target") or doc["solution"])


def _humaneval(doc: Doc, answer: str, chat: bool) -> Grade:
    # The head was shown without the white space at its end, so an answer that goes on brings its own line break.
    head = doc["query"] if chat else doc["query"].rstrip()
    return code.grade(code.humaneval(answer, head, doc["test"], doc["entry_point"], chat=chat), run_code=True)


def _mbpp(doc: Doc, answer: str, chat: bool) -> Grade:
    return code.grade(code.mbpp(answer, doc["target"], doc["tests"], doc["setup"], chat=chat), run_code=True)


_GRADERS: dict[str, tuple[str, _Graded]] = {
    "choice": (choice.GRADER, _choice),
    "bbh": (bbh.GRADER, _bbh),
    "bbh_steps": (bbh.GRADER, _bbh_steps),
    "gsm8k": (maths.GSM8K_GRADER, _gsm8k),
    "math": (maths.MATH_GRADER, _math),
    "humaneval": (code.GRADER, _humaneval),
    "mbpp": (code.GRADER, _mbpp),
}


def grader_of(task: Task, *, run_code: bool, chat: bool) -> Grader:
    """Raises ValueError where answers are programs and nobody allowed to run them, or nothing here can hold them."""
    if task.code:
        if not run_code:
            raise ValueError(
                f"{task.name} runs programs that the model writes (in a cage without network, files or other processes): "
                "allow it with --run-code, or leave the task out"
            )
        check_cage()
    name, graded = (INSTRUCTIONS, None) if task.grader == "instructions" else _GRADERS[task.grader]
    known: dict[tuple[int, str], Scores] = {}  # a program is run once, though lm-eval and our list of items both ask

    def grade(doc: Doc, answer: str) -> Scores:
        key = (doc["place"], answer)
        if key not in known:
            known[key] = _instructions(doc, answer) if graded is None else _one(task.main, graded(doc, answer, chat))
        return known[key]

    return Grader(name, grade)


def _one(metric: str, found: Grade) -> Scores:
    return {metric: float(found.correct), "extracted": found.extracted or "", "why": found.why}


def _instructions(doc: Doc, answer: str) -> Scores:
    """Whether all instructions were kept, and how many of them: by the letter, and with what often stands around an answer left
    out."""
    asked = instructions_of({"instructions": json.loads(doc["instructions"])})
    found = follow(answer, asked)
    broken = [one.kind for one, kept in zip(asked, found.strict, strict=True) if not kept]
    return {
        "prompt_strict": float(all(found.strict)), "prompt_loose": float(all(found.loose)),
        "instruction_strict": sum(found.strict) / len(asked), "instruction_loose": sum(found.loose) / len(asked),
        "why": f"not kept: {', '.join(broken)}",
    }  # fmt: skip
