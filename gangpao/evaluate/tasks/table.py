"""TASKS: what can be asked, a row each. SUITES: lists of them.

A benchmark that can be asked in two ways has a row for each, under one `benchmark`: by likelihood (`hellaswag`) and by a written
answer (`hellaswag_written`). The MiniCPM report ran both and printed the better one; ours shows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao.evaluate.graders.code import STOPS
from gangpao.evaluate.tasks import prompts
from gangpao.evaluate.tasks.docs import Doc

Area = Literal["language", "knowledge", "chinese", "reasoning", "math", "code"]
How = Literal["choice", "contexts", "word", "written"]  # what build.py makes of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row. data: a set of data.py. prompt: doc -> text; example: doc -> the answer behind it, for shots.

    how: choices by likelihood ("choice"), two beginnings of one end ("contexts"), a last word ("word"), an answer that is written
    and graded ("written"). head: in front of the examples. letters: the choices are asked for by letter. by_subject: the examples
    are of the doc's own subject. grader: a row of grade.py. main: the metric that tables show.
    """

    name: str
    benchmark: str
    title: str
    area: Area
    data: str
    how: How
    prompt: Callable[[Doc], str] = prompts.query
    example: Callable[[Doc], str] | None = None
    chat: Callable[[Doc], str] | None = None
    head: Callable[[Doc], str] | None = None
    shots: int = 0
    shots_from: str = ""  # a split
    by_subject: bool = False
    letters: bool = False
    delimiter: str = " "
    main: str = "acc"
    grader: str = ""
    stop: Sequence[str] = ()
    max_tokens: int = 256
    code: bool = False  # whether answers are run
    conversation: bool = False  # whether it is always asked as one
    version: str = "1"


def _choice(name: str, title: str, area: Area, main: str = "acc_norm", **more: object) -> Task:
    return Task(name=name, benchmark=name, title=title, area=area, data=name, how="choice", main=main, **more)  # type: ignore[arg-type]


def _exam(name: str, title: str, area: Area, zh: bool) -> tuple[Task, Task]:
    """Letters by likelihood, and written in brackets; five examples of the subject."""
    shared = {
        "benchmark": name, "title": title, "area": area, "data": name, "shots": 5, "shots_from": "dev", "by_subject": True,
    }  # fmt: skip
    asked, head = (prompts.cmmlu, prompts.cmmlu_head) if zh else (prompts.mmlu, prompts.mmlu_head)
    written = prompts.written_choice_zh if zh else prompts.written_choice
    likely = Task(
        name=name, how="choice", prompt=asked, example=prompts.letter, head=head, letters=True, **shared,  # type: ignore[arg-type]
        delimiter="" if zh else " ",
    )  # fmt: skip
    return likely, Task(
        name=f"{name}_written", how="written", prompt=written, example=prompts.bracketed, delimiter="", main="exact_match",
        grader="choice", stop=("\n\n", "问题：" if zh else "Question:"), max_tokens=32, **shared,  # type: ignore[arg-type]
    )  # fmt: skip


def _written(task: Task) -> Task:
    """The same benchmark with a letter as the answer, without examples."""
    return Task(
        name=f"{task.name}_written", benchmark=task.name, title=task.title, area=task.area, data=task.data, how="written",
        prompt=prompts.written_choice, delimiter="", main="exact_match", grader="choice", stop=("\n\n", "Question:"), max_tokens=32,
    )  # fmt: skip


_HELLASWAG = _choice("hellaswag", "HellaSwag", "language")
_ARC_EASY = _choice("arc_easy", "ARC-Easy", "reasoning", "acc", prompt=prompts.question)
_ARC_CHALLENGE = _choice("arc_challenge", "ARC-Challenge", "reasoning", prompt=prompts.question)

_ROWS = (
    _HELLASWAG,
    _written(_HELLASWAG),
    _ARC_EASY,
    _written(_ARC_EASY),
    _ARC_CHALLENGE,
    _written(_ARC_CHALLENGE),
    _choice("piqa", "PIQA", "language", prompt=prompts.question),
    Task(
        name="winogrande", benchmark="winogrande", title="WinoGrande", area="language", data="winogrande", how="contexts",
    ),
    Task(name="lambada", benchmark="lambada", title="LAMBADA", area="language", data="lambada", how="word"),
    *_exam("mmlu", "MMLU", "knowledge", zh=False),
    *_exam("cmmlu", "CMMLU", "chinese", zh=True),
    *_exam("ceval", "C-Eval", "chinese", zh=True),
    Task(
        name="gsm8k", benchmark="gsm8k", title="GSM8K", area="math", data="gsm8k", how="written", prompt=prompts.gsm8k,
        example=prompts.gsm8k_answer, shots=8, shots_from="train", delimiter="", main="exact_match", grader="gsm8k",
        stop=("Question:", "\n\n\n"), max_tokens=300,
    ),
    Task(
        name="math", benchmark="math", title="MATH", area="math", data="math", how="written", prompt=prompts.maths,
        example=prompts.maths_answer, shots=4, shots_from="own", delimiter="", main="exact_match", grader="math",
        stop=("Problem:", "I hope it is correct"), max_tokens=512,
    ),
    Task(
        name="bbh", benchmark="bbh", title="BBH", area="reasoning", data="bbh", how="written", prompt=prompts.bbh, shots=3,
        shots_from="bbh_examples", delimiter="", main="exact_match", grader="bbh", stop=("\n\n", "\nQ:"), max_tokens=64,
    ),
    Task(
        name="bbh_steps", benchmark="bbh_steps", title="BBH (steps)", area="reasoning", data="bbh", how="written",
        prompt=prompts.bbh_steps, shots=3, shots_from="bbh_examples", delimiter="", main="exact_match", grader="bbh_steps",
        stop=("\n\nQ:",), max_tokens=512,
    ),
    Task(
        name="humaneval", benchmark="humaneval", title="HumanEval", area="code", data="humaneval", how="written",
        prompt=prompts.humaneval, chat=prompts.humaneval_chat, main="pass@1", grader="humaneval", stop=STOPS["humaneval"],
        max_tokens=512, code=True,
    ),
    Task(
        name="mbpp", benchmark="mbpp", title="MBPP", area="code", data="mbpp", how="written", prompt=prompts.mbpp,
        example=prompts.mbpp_answer, shots=3, shots_from="own", delimiter="", main="pass@1", grader="mbpp",
        stop=STOPS["mbpp"], max_tokens=512, code=True,
    ),
    Task(
        name="instructions", benchmark="instructions", title="Instructions", area="language", data="instructions", how="written",
        delimiter="", main="prompt_strict", grader="instructions", max_tokens=768, conversation=True,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _ROWS}

SUITES: dict[str, tuple[str, ...]] = {
    "minicpm": (
        "ceval", "ceval_written", "cmmlu", "cmmlu_written", "mmlu", "mmlu_written", "humaneval", "mbpp", "gsm8k", "math", "bbh",
        "arc_easy", "arc_easy_written", "arc_challenge", "arc_challenge_written", "hellaswag", "hellaswag_written",
    ),
    "quick": ("hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "cmmlu", "mmlu", "gsm8k"),
    "language": ("hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "lambada"),
    "knowledge": ("mmlu", "cmmlu", "arc_challenge"),
    "math": ("gsm8k", "math"),
    "code": ("humaneval", "mbpp"),
    "chinese": ("cmmlu", "cmmlu_written", "ceval", "ceval_written"),
}  # fmt: skip
# Items of each task in a suite that says so, evenly spread over the set.
LIMITS: dict[str, dict[str, int]] = {
    "quick": {
        "hellaswag": 1600, "arc_easy": 1200, "arc_challenge": 1172, "piqa": 1000, "winogrande": 1267, "cmmlu": 600, "mmlu": 600,
        "gsm8k": 48,
    },
}  # fmt: skip
