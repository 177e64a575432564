"""Texts found by their pictures and pictures by their texts: what captions are worth, no two of which are word for word alike.

A group is so many pictures whose rows answer the same question with different texts. A model gives each text a log-probability
behind each picture, L [pictures, texts], and then
    a text finds its picture   where its own makes it likeliest:                       argmax over pictures of L
    a picture finds its text   by how much more likely it makes a text than others do: argmax over texts of L - log mean exp L
The second takes away that short and common texts are likely behind any picture. Chance is one in the size of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.engine.generate import Engine
from gangpao.engine.score import Scorer
from gangpao.evaluate.sight.rows import Question

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """Of the pictures of a group: for which the text was found, and by which text the picture was."""

    texts: tuple[bool, ...]
    pictures: tuple[bool, ...]


def groups(questions: Iterable[Question], size: int) -> list[tuple[Question, ...]]:
    """Whole groups, filled in the order of the questions; what is left over is in none. In a group all pictures differ, and all
    texts, none of which is empty."""
    by_words: dict[str, list[Question]] = {}
    for question in questions:
        if question.wanted:
            by_words.setdefault(question.words, []).append(question)
    out: list[tuple[Question, ...]] = []
    for asked in by_words.values():
        if len({question.wanted for question in asked}) < size:
            continue
        opened: list[dict[tuple[str, bytes], Question]] = []
        for question in asked:
            shown = b"".join(picture.data for picture in question.pictures.values())
            place = next((one for one in opened if not any(question.wanted == w or shown == s for w, s in one)), None)
            if place is None:
                opened.append(place := {})
            place[question.wanted, shown] = question
            if len(place) == size:
                out.append(tuple(place.values()))
                opened = [one for one in opened if one is not place]
    return out


def likelihoods(engine: Engine, scorer: Scorer, group: Sequence[Question]) -> Floats | None:
    """L [pictures, texts], of each text with the end of its turn; None where one behind a picture does not fit into the context."""
    pictures = [picture for question in group for picture in question.pictures.values()]
    seeing = engine.seeing
    assert seeing is not None, "only a model that sees is asked"
    assert not seeing.sight.vision.canvas, "the scorer knows no positions of three axes"
    contexts = [engine.prompt_with(question.messages, question.pictures) for question in group]
    texts = [_answer(engine, question, context) for question, context in zip(group, contexts, strict=True)]
    if max(map(len, contexts)) + max(map(len, texts)) > engine.context:
        return None
    rows = sum(seeing.look(picture).tokens for picture in pictures)
    seeing.table.have_room(rows)  # the whole group is needed at once
    hold = engine.see(pictures)
    out = np.zeros((len(group), len(group)))
    for number, scores in scorer.score((context, texts) for context in contexts):
        out[number] = [score.total for score in scores]
    del hold
    return out


def _answer(engine: Engine, question: Question, context: Sequence[int]) -> list[int]:
    """The ids that the model's own template has for an answer behind its question."""
    whole = [*question.messages, {"role": "assistant", "content": question.wanted}]
    ids = engine.prompt_with(whole, question.pictures, add_generation_prompt=False)
    if list(ids[: len(context)]) == list(context) and len(ids) > len(context):
        return list(ids[len(context) :])
    return engine.tokenizer.encode(question.wanted, start=False)  # a template that writes answers otherwise


def found(likely: Floats) -> Found:
    """Who finds whom by L [pictures, texts]."""
    own = np.arange(len(likely))
    top = likely.max(axis=0)
    more = likely - (top + np.log(np.exp(likely - top).mean(axis=0)))
    return Found(
        tuple(bool(x) for x in more.argmax(axis=1) == own), tuple(bool(x) for x in likely.argmax(axis=0) == own)
    )
