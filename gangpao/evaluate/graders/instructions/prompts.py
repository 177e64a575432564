"""The set of prompts: drawn from the table by a seed, so that the repository holds the table and not the prompts.

Draws come from SHA-256 of the seed and what is drawn, which is the same on every machine and in every version of Python. Every kind
of the table occurs in each of its languages; half of the prompts are Chinese.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao import atomic
from gangpao.evaluate.graders.instructions.follow import Instruction
from gangpao.evaluate.graders.instructions.table import KINDS, QUESTIONS, RELATIONS, TASKS, Kind

SET_VERSION = 1
SEED = 2026
COUNT = 120


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what can be checked of the answer."""

    name: str
    language: str  # zh or en, of the request
    text: str
    instructions: tuple[Instruction, ...]


def _draw(seed: int, what: str, below: int) -> int:
    digest = hashlib.sha256(f"{SET_VERSION}/{seed}/{what}".encode()).digest()
    return int.from_bytes(digest[:8]) % below


def _parameters(kind: Kind, language: str, seed: int, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in kind.draws.items():
        choices = values[language] if isinstance(values, Mapping) else values
        found[name] = choices[_draw(seed, f"{what}/{name}", len(choices))]
    return found


def _worded(kind: Kind, language: str, parameters: Mapping[str, Any]) -> str:
    """The instruction in words; a list is written out."""
    between = " / " if kind.name == "one_of" else "、" if language == "zh" else ", "
    shown = {k: between.join(v) if isinstance(v, list) else v for k, v in parameters.items()}
    if "relation" in shown:
        shown["relation"] = RELATIONS[language][shown["relation"]]
    return (kind.zh if language == "zh" else kind.en).format(**shown)


def _beside(first: Kind, language: str, seed: int, what: str) -> list[Kind]:
    """Up to two further kinds that can be kept together with the first."""
    chosen = [first]
    wanted = 0 if first.alone else _draw(seed, f"{what}/more", 3)
    rest = [k for k in KINDS if not k.alone and k.only in ("", language)]
    for number in range(wanted):
        used = {group for kind in chosen for group in kind.groups}
        free = [k for k in rest if not used & set(k.groups)]
        if free:
            chosen.append(free[_draw(seed, f"{what}/kind {number}", len(free))])
    return chosen


def _prompt(number: int, language: str, first: Kind, seed: int) -> Prompt:
    what = f"{language}/{number}"
    tasks = QUESTIONS[language] if first.name == "one_of" else TASKS[language]
    text = tasks[_draw(seed, f"{what}/task", len(tasks))]
    instructions = []
    for place, kind in enumerate(_beside(first, language, seed, what)):
        parameters = _parameters(kind, language, seed, f"{what}/{place}")
        worded = _worded(kind, language, parameters)
        if kind.name == "repeated":
            parameters = {"text": text}
        text += worded if language == "zh" else f" {worded}"
        instructions.append(Instruction(kind.name, parameters))
    return Prompt(f"{language}-{number:03}", language, text, tuple(instructions))


def prompts(seed: int = SEED, count: int = COUNT) -> list[Prompt]:
    """`count` prompts, English and Chinese in turn; the same for the same seed."""
    kinds = {language: [k for k in KINDS if k.only in ("", language)] for language in ("en", "zh")}
    found = []
    for number in range(count):
        language = ("en", "zh")[number % 2]
        mine: Sequence[Kind] = kinds[language]
        found.append(_prompt(number // 2, language, mine[number // 2 % len(mine)], seed))
    return found


def rows(seed: int = SEED, count: int = COUNT) -> list[dict[str, Any]]:
    """The prompts as rows of a data set."""
    return [
        {
            "name": p.name,
            "language": p.language,
            "prompt": p.text,
            "instructions": [{"kind": i.kind, "parameters": i.parameters} for i in p.instructions],
        }
        for p in prompts(seed, count)
    ]


def write(path: Path, seed: int = SEED, count: int = COUNT) -> None:
    """The rows as JSON lines, whole or not at all; byte for byte the same for the same seed."""
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows(seed, count))
    with atomic.new_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def instructions_of(row: Mapping[str, Any]) -> tuple[Instruction, ...]:
    """The instructions of a row, as `rows` writes them. Raises ValueError for another form."""
    try:
        return tuple(Instruction(str(i["kind"]), dict(i["parameters"])) for i in row["instructions"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no instructions with kind and parameters in the row {str(row)[:80]}") from error
