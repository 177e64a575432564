"""No answer, however long or odd, holds up a grader."""

import time
from collections.abc import Callable

import pytest

from gangpao.evaluate.graders import bbh, choice, code, maths, values
from gangpao.evaluate.graders.instructions import checks

PIECES = [
    "a",
    " ",
    "\n",
    "1,",
    "\\boxed{",
    "(",
    "* a\n",
    "1. a\n",
    "the answer is ",
    "```\n",
    "def f(x):\n",
    "Mr. ",
    "#### ",
    "print(1)\n",
]
ARGUMENTS: dict[str, dict[str, object]] = {
    "sentence_count": {"relation": "at least", "number": 3},
    "section_count": {"name": "Section", "number": 2},
    "postscript": {"mark": "P.S."},
    "bullet_count": {"number": 2},
    "highlighted": {"number": 2},
    "placeholders": {"number": 2},
    "json_only": {},
    "title": {},
}
GRADERS: dict[str, Callable[[str], object]] = {
    "gsm8k": lambda text: maths.gsm8k(text, "1"),
    "math": lambda text: maths.math(text, "1"),
    "values": lambda text: values.same(text, "1"),
    "choice": lambda text: choice.letter(text, options=["a b", "c"]),
    "bbh": lambda text: bbh.grade("So the answer is " + text, "(A)"),
    "code": lambda text: code.from_chat(text, ["f"], "def f(x):\n    'd'\n"),
    **{kind: lambda text, kind=kind: checks.check(text, kind, ARGUMENTS[kind]) for kind in ARGUMENTS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", GRADERS)
def test_long_answers_end_soon(name: str) -> None:
    for piece in PIECES:
        began = time.process_time()
        GRADERS[name]((piece * 8_000)[:8_000])
        assert time.process_time() - began < 1.0, piece
