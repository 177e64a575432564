"""Rows of preference data: two answers to one prompt of which one is better, and single answers with a label.

    pairs     chosen and rejected: two texts, two turns, or two lists of turns. The prompt stands beside them (a prompt, a question,
              a list of turns, instruction and input), or is what both lists begin with (TRL's implicit prompt, UltraFeedback);
              HH-RLHF's transcripts ("\\n\\nHuman: ... \\n\\nAssistant: ...") are such lists written as one text
    labelled  a conversation or a prompt with its answer, and whether it is a good one: label, or kto_tag

The idea: what comes out is two whole conversations and how many of their turns are the prompt, so that whoever renders needs no
other rule for preferences than for conversations.

What it gives up: scores and rankings of more than two answers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gangpao.data.config import Source
from gangpao.data.sources.forms import (
    LISTS,
    QUESTIONS,
    Document,
    alpaca_prompt,
    conversation,
    detect,
    first_text,
    parse,
    question_turns,
    wrapped,
)

PAIR_KEYS = (("chosen", "rejected"), ("response_j", "response_k"), ("chosen_response", "rejected_response"))
LABEL_KEYS = ("label", "kto_tag")
_PROMPT_KEYS = ("prompt", "question", "query", "input")
_TRANSCRIPT = re.compile(r"\A\s*Human:.*\n\nAssistant:", re.S)
_SPEAKERS = re.compile(r"(?:\A|\n\n)(Human|Assistant):")

Kind = Literal["pairs", "labelled"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that begin with the same `prompt` turns; the turns behind them are the better and the worse answer."""

    chosen: Document
    rejected: Document
    prompt: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation whose turns from `prompt` on are an answer that is good (desirable) or not."""

    document: Document
    prompt: int
    desirable: bool


def detect_preferences(rows: Sequence[Any]) -> Kind | None:
    """Which preferences at least half of these rows hold, if any."""
    found = [_kind_of(row) for row in rows]
    return next((kind for kind in ("pairs", "labelled") if 2 * found.count(kind) >= max(1, len(rows))), None)


def parse_pair(row: Any) -> Pair | str:
    """The pair in a row, or why there is none."""
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    keys = _pair_keys(row)
    if keys is None:
        return "has no chosen and rejected answer"
    answers: list[list[Any]] = []
    for key in keys:
        answer = _side(row, key)
        if isinstance(answer, str):
            return f"{key}: {answer}"
        answers.append(answer)
    prompt = [] if all(_is_whole(answer) for answer in answers) else _prompt(row, answers[0])
    if isinstance(prompt, str):
        return prompt
    sides = [conversation(row, [*prompt, *answer]) for answer in answers]
    for key, side in zip(keys, sides, strict=True):
        if isinstance(side, str):
            return f"{key}: {side}"
    chosen, rejected = (side for side in sides if isinstance(side, Document))
    if chosen.messages == rejected.messages:
        return "has the same answer chosen and rejected"
    # A prompt beside the answers ends where they begin, also where both begin alike; else what both begin with is the prompt.
    turns = len(chosen.messages) - len(answers[0]) if prompt else _shared(chosen, rejected)
    return _checked(Pair(chosen, rejected, turns))


def parse_labelled(row: Any) -> Labelled | str:
    """The answer with its label in a row, or why there is none."""
    row = wrapped(row)
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    label = next((row[key] for key in LABEL_KEYS if key in row), None)
    if not isinstance(label, bool) and label not in (0, 1):
        return f"has no label that is true or false under {' or '.join(LABEL_KEYS)}"
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str) and _is_transcript(prompt):
        row = {**row, "prompt": _turns_of(prompt), "completion": _answer(completion.strip())}
    found = detect([row])
    if found is None or found.form == "text":
        return "has a label and no conversation, nor a prompt and its completion"
    document = parse(row, Source(path="-", form=found.form, messages=found.key))
    if isinstance(document, str):
        return document
    if document.messages[-1]["role"] != "assistant":
        return "has a label, and its last turn is no answer"
    return Labelled(document, len(document.messages) - 1, bool(label))


def unpaired(pair: Pair) -> tuple[Labelled, Labelled]:
    """A pair as two answers with labels."""
    return Labelled(pair.chosen, pair.prompt, True), Labelled(pair.rejected, pair.prompt, False)


def _kind_of(row: Any) -> Kind | None:
    if not isinstance(row, dict):
        return None
    if _pair_keys(row) is not None:
        return "pairs"
    label = next((row[key] for key in LABEL_KEYS if key in row), None)
    return "labelled" if isinstance(label, bool) and not isinstance(parse_labelled(row), str) else None


def _pair_keys(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((keys for keys in PAIR_KEYS if all(isinstance(row.get(k), str | list | dict) for k in keys)), None)


def _turns_of(text: str) -> list[Any]:
    """A text as turns: a transcript of Human and Assistant, MiniCPM's marks, or one turn."""
    if not _TRANSCRIPT.match(text):
        return list(question_turns(text))
    _, *cut = _SPEAKERS.split("\n\n" + text.strip())
    turns = [
        {"role": "user" if name == "Human" else "assistant", "content": words.strip()}
        for name, words in zip(cut[::2], cut[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _TRANSCRIPT.match(value) is not None


def _side(row: Mapping[str, Any], key: str) -> list[Any] | str:
    """One of a row's two answers as a list of turns, with the question in front where the row says it nowhere else."""
    value = row[key]
    if _is_transcript(row.get("prompt")) and isinstance(value, str):
        return _answer(value.strip())  # behind "Assistant:" stands a space that is not the answer's
    beside = any(row.get(name) for name in (*LISTS, *_PROMPT_KEYS, *QUESTIONS))
    return _turns_of(value) if not beside and _is_transcript(value) else _answer(value)


def _answer(value: Any) -> list[Any] | str:
    """An answer as a list of turns."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return value if value and all(isinstance(turn, dict) for turn in value) else "is no list of turns"


def _is_whole(answer: Any) -> bool:
    """Whether an answer's list begins with the question."""
    return answer[0].get("role", answer[0].get("from")) not in ("assistant", "gpt", "model", "bot", "function_call")


def _prompt(row: Mapping[str, Any], chosen: list[Any]) -> list[Any] | str:
    """The turns in front of the answers."""
    given = next((row[key] for key in LISTS if isinstance(row.get(key), list) and row[key]), None)
    if given is None:
        given = next((row[key] for key in _PROMPT_KEYS if isinstance(row.get(key), str | list) and row[key]), None)
    if first_text(row, QUESTIONS) is not None:
        given = alpaca_prompt(row)
        if isinstance(given, str):
            return given
    if given is None:
        return "has no prompt beside its answers, and they do not begin with one"
    turns = _turns_of(given) if isinstance(given, str) else list(given)
    turns = [
        {"role": "assistant" if i % 2 else "user", "content": turn} if isinstance(turn, str) else turn
        for i, turn in enumerate(turns)
    ]
    if turns[-1] == chosen[-1]:  # a list of the whole conversation beside the two answers
        turns.pop()
    return turns or "has a prompt that is its answer"


def _shared(chosen: Document, rejected: Document) -> int:
    """How many turns both begin with."""
    pairs = zip(chosen.messages, rejected.messages, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen.messages), len(rejected.messages)))


def _checked(pair: Pair) -> Pair | str:
    if not any(turn["role"] != "system" for turn in pair.chosen.messages[: pair.prompt]):
        return "has two answers that share no prompt"
    if pair.chosen.messages[pair.prompt - 1]["role"] == "assistant":
        return "has a prompt that ends in an answer"
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        rest = side.messages[pair.prompt :]
        if not rest or rest[-1]["role"] != "assistant":
            return f"{name}: the last turn is no answer"
    return pair
