"""A conversation in one of our families as parts: markup, contents, and which of them the model is trained to say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gangpao.text.families import Family


class Part(NamedTuple):
    """A stretch of text. markup: ours, may hold control tokens. trained: the model's own words, or their end."""

    text: str
    markup: bool
    trained: bool = False


def render_parts(family: Family, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[Part]:
    """Parts of checked messages. Raises ValueError for an order of roles that the family does not have."""
    return [part for part in _parts(family, messages, add_generation_prompt) if part.text]


def _parts(family: Family, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> Iterator[Part]:
    turns = list(messages)
    opening = ""
    yield Part(family.begin, markup=True)
    if turns[0]["role"] != "system" and family.default_system is not None:
        turns.insert(0, {"role": "system", "content": family.default_system})
    if turns[0]["role"] == "system" and family.system is None:
        if family.system_in_user is None:
            raise ValueError(
                f"the {family.name} chat format has no system message; put its text into the first question"
            )
        opening = family.system_in_user.before + turns.pop(0)["content"] + family.system_in_user.after
    if family.alternates:
        _check_order(family, turns)
    for turn in turns:
        content = opening + turn["content"] if turn["role"] == "user" else turn["content"]
        opening = "" if turn["role"] == "user" else opening
        content = content.strip() if family.strip else content
        if turn["role"] == "assistant":
            yield Part(family.assistant.before, markup=True)
            yield Part(content, markup=False, trained=True)
            yield Part(family.end, markup=True, trained=True)
            yield Part(family.assistant.after, markup=True)
            continue
        marks = family.user if turn["role"] == "user" else family.system
        if marks is None:
            raise ValueError(f"the {family.name} chat format takes a system message at the start only")
        yield Part(marks.before, markup=True)
        yield Part(content, markup=False)
        yield Part(marks.after, markup=True)
    if add_generation_prompt:
        yield Part(family.answer, markup=True)


def _check_order(family: Family, turns: Sequence[Mapping[str, Any]]) -> None:
    for i, turn in enumerate(turns):
        wanted = "assistant" if i % 2 else "user"
        if turn["role"] != wanted:
            raise ValueError(
                f"the {family.name} chat format takes questions and answers in turn, a question first: "
                f"turn {i + 1} should be {wanted}, not {turn['role']}"
            )
