"""Answers that were written -> scores, by the graders in `graders/`, each with its name for the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gangpao.evaluate.tasks.docs import Doc
from gangpao.evaluate.tasks.table import Task

Scores = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class Grader:
    """name: with its version. grade: doc and answer -> the task's metric, and what was taken for the answer."""

    name: str
    grade: Callable[[Doc, str], Scores]


def grader_of(task: Task, *, run_code: bool, chat: bool) -> Grader:
    """Raises ValueError where answers are programs and nobody allowed to run them."""
    if task.code and not run_code:
        raise ValueError(
            f"{task.name} runs programs that the model writes (in a cage without network, files or other processes): "
            "allow it with --run-code, or leave the task out"
        )
    raise NotImplementedError
