"""Prompts that answers are asked for where none are given, English and Chinese, each of which has an end to be reached.

A file of one's own has a prompt a line, or JSON lines with {"prompt"} or {"messages"}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Messages = Sequence[Mapping[str, Any]]

_EN = (
    "Name the three primary colours of light and say in one sentence what happens when all are mixed.",
    "A rectangle is 7 cm long and 4 cm wide. What are its perimeter and its area?",
    "Write a Python function that tells whether a string is a palindrome, ignoring spaces and case.",
    "Explain to a child of ten why the moon changes its shape.",
    "Translate into French: The library is closed on Mondays, but you can return books at the side door.",
    "Give me a short packing list for two days of hiking in the rain.",
    "Which is larger, 9.11 or 9.9? Explain briefly.",
    "Write a polite e-mail of at most five sentences that moves a meeting from Tuesday to Thursday.",
    "What does this SQL do? SELECT city, COUNT(*) FROM users GROUP BY city HAVING COUNT(*) > 10;",
    "List four differences between a frog and a toad.",
)
_ZH = (
    "用一句话解释什么是光合作用。",
    "一件衣服原价三百元,打八折以后再减二十元,最后多少钱?",
    "写一个Python函数,返回一个列表中出现次数最多的元素。",
    "请用不超过一百字介绍一下长城。",
    "把这句话翻译成英语:虽然下雨了,孩子们还是在操场上玩到了天黑。",
    "给刚开始学游泳的成年人三条建议。",
    "小明有十五个苹果,给了小红三分之一,又买来四个,现在有几个?",
    "解释一下“画蛇添足”的意思,并造一个句子。",
    "为什么冬天呼出的气会变成白雾?",
    "列出端午节的三个习俗。",
)
PROMPTS = tuple(
    prompt for both in zip(_EN, _ZH, strict=True) for prompt in both
)  # a beginning of them has both languages


def read_prompts(path: Path | None) -> list[Messages]:
    """The conversations of a file, ours without one. Raises ValueError naming the line that is none."""
    if path is None:
        return [_said(prompt) for prompt in PROMPTS]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from error
    rows = path.suffix in (".jsonl", ".json", ".ndjson")
    found = [
        _row(path, number, line) if rows else _said(line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f'{path}: no prompts; write one a line, or JSON lines with {{"prompt"}} or {{"messages"}}')
    return found


def _said(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]


def _row(path: Path, number: int, line: str) -> Messages:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from error
    if isinstance(row, str):
        return _said(row)
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return _said(row["prompt"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        end = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        if end >= 0:
            return messages[: end + 1]  # what was answered is not shown
    raise ValueError(f'{path}:{number}: neither "prompt" (a text) nor "messages" with one of a user')
