"""What nobody may miss: a smaller model that ends fewer of its answers than chance explains, or closes fewer of its thoughts.

Compared is answer by answer: the same prompt, greedy or drawn with the same seed. Answers to one prompt hang together, so
the errors are those of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao.compress.compare.answers import Said
from gangpao.compress.compare.run import Comparison
from gangpao.evaluate.statistics import Difference, paired

What = Literal["ends", "closes", "loops"]
_ASKED: dict[What, Callable[[Said], bool]] = {
    "ends": lambda said: said.ended,
    "closes": lambda said: said.closed,
    "loops": lambda said: said.loops,
}


@dataclass(frozen=True, slots=True)
class Warning_:
    """A model, what it does worse, in how many of so many answers, and the reference."""

    model: str
    what: What
    count: int
    reference: int
    asked: int
    difference: Difference


def difference(reference: Sequence[Said], said: Sequence[Said], what: What) -> Difference:
    """Of shares of answers, said - reference."""
    one, other = ([float(_ASKED[what](s)) for s in some] for some in (reference, said))
    clusters = [s.number for s in said]
    several = len(set(clusters)) < len(clusters)
    return paired(one, other, clusters if several else None, higher_is_better=what != "loops")


def warnings(comparison: Comparison) -> list[Warning_]:
    """All of them, model by model. Thoughts are judged where the reference has any."""
    first, *others = comparison.models
    found = []
    for model in others:
        if not first.said or len(first.said) != len(model.said):
            continue
        kinds: list[What] = ["ends", "closes", "loops"] if any(s.thought for s in first.said) else ["ends", "loops"]
        for what in kinds:
            d = difference(first.said, model.said, what)
            if d.word == "worse":
                counts = [sum(_ASKED[what](s) for s in some) for some in (model.said, first.said)]
                found.append(Warning_(model.facts.name, what, counts[0], counts[1], len(model.said), d))
    return found
