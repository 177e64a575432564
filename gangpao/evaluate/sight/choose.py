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
    texts."""
    out: list[tuple[Question, ...]] = []
    opened: dict[str, list[list[Question]]] = {}
    for question in questions:
        waiting = opened.setdefault(question.words, [])
        place = next((group for group in waiting if not any(_alike(question, other) for other in group)), None)
        if place is None:
            place = []
            waiting.append(place)
        place.append(question)
        if len(place) == size:
            out.append(tuple(place))
            waiting[:] = [group for group in waiting if group is not place]
    return out


def _alike(a: Question, b: Question) -> bool:
    return a.wanted == b.wanted or [p.data for p in a.pictures.values()] == [p.data for p in b.pictures.values()]


def likelihoods(engine: Engine, scorer: Scorer, group: Sequence[Question]) -> Floats:
    """L [pictures, texts]. Raises ValueError for what does not fit into the context."""
    pictures = [picture for question in group for picture in question.pictures.values()]
    seeing = engine.seeing
    assert seeing is not None, "only a model that sees is asked"
    rows = sum(seeing.look(picture).tokens for picture in pictures)
    seeing.table.limit = max(seeing.table.limit, 4 * rows * seeing.table.width)  # the whole group is needed at once
    hold = engine.see(pictures)
    texts = [engine.tokenizer.encode(question.wanted) for question in group]
    contexts = [engine.prompt_with([{"role": "user", "content": q.text}], q.pictures) for q in group]
    out = np.zeros((len(group), len(group)))
    for number, scores in scorer.score((context, texts) for context in contexts):
        out[number] = [score.total for score in scores]
    del hold
    return out


def found(likely: Floats) -> Found:
    """Who finds whom by L [pictures, texts]."""
    own = np.arange(len(likely))
    top = likely.max(axis=0)
    more = likely - (top + np.log(np.exp(likely - top).mean(axis=0)))
    return Found(
        tuple(bool(x) for x in more.argmax(axis=1) == own), tuple(bool(x) for x in likely.argmax(axis=0) == own)
    )
