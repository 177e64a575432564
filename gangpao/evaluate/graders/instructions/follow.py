"""Verdicts over the instructions of a prompt: strict on the answer as it is, loose on it without what often stands around it.

Loose takes the answer without its first line, without its last, without both, each also without asterisks ("Sure, here it is:",
emphasis): an instruction is kept loosely if it is kept in any of these forms. Four accuracies, as IFEval reports them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from gangpao.evaluate.graders.grade import Grade
from gangpao.evaluate.graders.instructions import checks

NAME, VERSION = "gangpao-instructions", 1
GRADER = f"{NAME} {VERSION}"


@dataclass(frozen=True)
class Instruction:
    """One thing that was asked of the form of an answer."""

    kind: str  # a key of checks.CHECKS
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Followed:
    """For each instruction of a prompt, in order, whether it was kept."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def forms(answer: str) -> list[str]:
    """The answer, and the forms of it that count loosely."""
    lines = answer.strip().split("\n")
    cuts = [answer, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return list(dict.fromkeys(itertools.chain(cuts, (cut.replace("*", "") for cut in cuts))))


def follow(answer: str, instructions: Sequence[Instruction]) -> Followed:
    """Check every instruction; an empty answer keeps none. Raises ValueError for an unknown one."""
    strict = [bool(answer.strip()) and checks.check(answer, i.kind, i.parameters) for i in instructions]
    written = [form for form in forms(answer) if form.strip()]
    loose = [any(checks.check(form, i.kind, i.parameters) for form in written) for i in instructions]
    return Followed(tuple(strict), tuple(loose))


def grade(answer: str, instructions: Sequence[Instruction], *, loose: bool = False) -> Grade:
    """Right if all instructions are kept; `why` names those that are not."""
    found = follow(answer, instructions)
    kept = found.loose if loose else found.strict
    broken = [i.kind for i, ok in zip(instructions, kept, strict=True) if not ok]
    return Grade(not broken, answer or None, f"not kept: {', '.join(broken)}" if broken else "all kept")


def accuracies(followed: Sequence[Followed]) -> dict[str, tuple[float, float | None]]:
    """prompt_strict, prompt_loose (all instructions of a prompt kept), instruction_strict, instruction_loose (of all instructions),
    each with its standard error; that of the latter two takes the prompts, not the instructions, as independent."""
    if not followed:
        raise ValueError("no prompts were answered")
    result: dict[str, tuple[float, float | None]] = {}
    for name in ("strict", "loose"):
        kept: list[tuple[bool, ...]] = [getattr(f, name) for f in followed]
        result[f"prompt_{name}"] = share([(float(all(k)), 1) for k in kept])
        result[f"instruction_{name}"] = share([(float(sum(k)), len(k)) for k in kept])
    return result


def share(parts: Sequence[tuple[float, int]]) -> tuple[float, float | None]:
    """Kept / asked over all prompts, and the standard error of that ratio with prompts as clusters."""
    total, count = sum(n for _, n in parts), len(parts)
    if total == 0:
        raise ValueError("no instructions in the prompts")
    value = sum(kept for kept, _ in parts) / total
    if count == 1:
        return value, None
    squares = sum((kept - value * n) ** 2 for kept, n in parts)
    return value, sqrt(squares * count / (count - 1)) / total
