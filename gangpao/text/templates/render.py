"""A conversation in one of our families as parts: markup, contents, and which of them the model is trained to say."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gangpao.text.templates.formats import Family


class Part(NamedTuple):
    """A stretch of text. markup: ours, may hold control tokens. trained: the model's own words, or their end. inner: goes on
    in the answer that the part before it began."""

    text: str
    markup: bool
    trained: bool = False
    inner: bool = False


def render_parts(
    family: Family, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, continue_final: bool = False
) -> list[Part]:
    """Parts of checked messages; with continue_final the last one, an answer, is left open. Raises ValueError for an order of
    roles that the family does not have."""
    parts = list(_parts(family, messages, add_generation_prompt))
    if continue_final and messages[-1]["role"] == "assistant":
        del parts[-2:]  # the answer's end, and what stands behind it
    return [part for part in parts if part.text]


def _parts(family: Family, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> Iterator[Part]:
    turns = list(messages)
    opening: list[Part] = []
    yield Part(family.begin, markup=True)
    if turns[0]["role"] != "system" and family.default_system is not None:
        turns.insert(0, {"role": "system", "content": family.default_system})
    if turns[0]["role"] == "system" and family.system is None:
        if family.system_in_user is None:
            raise ValueError(
                f"the {family.name} chat format has no system message; put its text into the first question"
            )
        around = family.system_in_user
        opening = [Part(around.before, markup=False), *_said(turns.pop(0)), Part(around.after, markup=False)]
    if family.alternates:
        _check_order(family, turns)
    for turn in turns:
        content = _said(turn)
        if turn["role"] == "user":
            content, opening = [*opening, *content], []
        content = _joined(content, family.strip)
        if turn["role"] == "assistant":
            prompt, lead = family.assistant.before, ""
            if prompt.startswith(family.answer):  # what the prompt does not say, the model has to
                prompt, lead = family.answer, prompt[len(family.answer) :]
            yield Part(prompt, markup=True)
            yield Part(lead, markup=True, trained=True)
            for i, part in enumerate(content):
                yield part._replace(trained=True, inner=i > 0 or bool(lead))
            yield Part(family.end, markup=True, trained=True)
            yield Part(family.assistant.after, markup=True)
            continue
        marks = family.user if turn["role"] == "user" else family.system
        if marks is None:
            raise ValueError(f"the {family.name} chat format takes a system message at the start only")
        yield Part(marks.before, markup=True)
        yield from content
        yield Part(marks.after, markup=True)
    if add_generation_prompt:
        yield Part(family.answer, markup=True)


def _said(turn: Mapping[str, Any]) -> list[Part]:
    """A turn's content, which is a text or, where tools took part, a sequence of parts."""
    content = turn["content"]
    return [Part(content, markup=False)] if isinstance(content, str) else list(content)


def _joined(parts: list[Part], strip: bool) -> list[Part]:
    """Neighbours of a kind as one part, without white space around the whole when `strip`."""
    kinds = itertools.groupby((p for p in parts if p.text), key=lambda p: p.markup)
    runs = [Part("".join(p.text for p in group), markup) for markup, group in kinds]
    if strip and runs:
        runs[0] = runs[0]._replace(text=runs[0].text.lstrip())
        runs[-1] = runs[-1]._replace(text=runs[-1].text.rstrip())
    return runs


def _check_order(family: Family, turns: Sequence[Mapping[str, Any]]) -> None:
    for i, turn in enumerate(turns):
        wanted = "assistant" if i % 2 else "user"
        if turn["role"] != wanted:
            raise ValueError(
                f"the {family.name} chat format takes questions and answers in turn, a question first: "
                f"turn {i + 1} should be {wanted}, not {turn['role']}"
            )
