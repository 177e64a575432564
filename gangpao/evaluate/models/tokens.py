"""Text to ids for models that we run ourselves, by the rules of lm-eval's Hugging Face path, so that scores are comparable.

Context and continuation are encoded together and cut by the number of the context's own ids; an empty context is the one token
that the model begins with. Unlike there, nothing is cut to fit: what is too long is not scored and says so, and so is a
continuation of which no token is left because its beginning became one token with the end of the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from gangpao.evaluate.models.protocol import Fault, Group, Score


class Encoder(Protocol):
    """As much of a tokenizer as is needed here."""

    @property
    def adds_bos(self) -> bool: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False) -> list[int]: ...


class Encoded(NamedTuple):
    """A group as ids; endings that are scored and, for each continuation, which of them it is or what is wrong with it."""

    context: list[int]
    endings: list[list[int]]
    places: list[int | Fault]


def encode_text(encoder: Encoder, text: str) -> list[int]:
    """A text as the model is to see it: special pieces are read as such, and BOS stands in front once where the model wants it."""
    ids = encoder.encode(text, parse_special=True)
    if encoder.adds_bos and encoder.bos_id is not None and ids[:1] != [encoder.bos_id]:
        ids.insert(0, encoder.bos_id)
    return ids


def first_id(encoder: Encoder, what: str) -> int:
    """The token that a text begins with. Raises ValueError saying `what` cannot be done without."""
    begins = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id
    if begins is None:
        raise ValueError(f"{what}: this model has neither a first nor a last token")
    return begins


def encode_group(encoder: Encoder, group: Group, limit: int) -> Encoded:
    """limit: ids that the model can take. Raises ValueError for an empty context with a model that has no first token."""
    context = encode_text(encoder, group.context)
    begins = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id
    endings: list[list[int]] = []
    places: list[int | Fault] = []
    for continuation in group.continuations:
        if group.context:
            ending = encode_text(encoder, group.context + continuation)[len(context) :]
        else:
            ending = encoder.encode(continuation, parse_special=True)
            if begins is None:
                raise ValueError("an empty context cannot be scored: this model has neither a first nor a last token")
            ending = ending[1:] if ending[:1] == [begins] else ending
        if not ending:
            places.append("empty_choice")
        elif max(1, len(context)) + len(ending) - 1 > limit:
            places.append("too_long")
        else:
            places.append(len(endings))
            endings.append(ending)
    if not group.context:
        context = [begins] if begins is not None else []
    return Encoded(context, endings, places)


def scores_of(encoded: Encoded, found: Sequence[tuple[float, bool]]) -> list[Score]:
    """Scores in the order of the continuations, from (logprob, greedy) of the endings."""
    out = []
    for place in encoded.places:
        if isinstance(place, int):
            out.append(Score(*found[place], tokens=len(encoded.endings[place])))
        else:
            out.append(Score(float("-inf"), False, 0, place))
    return out


class Window(NamedTuple):
    """A stretch of a text: what is read first, and what is scored behind it."""

    context: list[int]
    ending: list[int]


def windows(ids: Sequence[int], begins: int, limit: int) -> Iterator[Window]:
    """Every id scored once, in windows of at most `limit`, with as much before it as fits: `begins` in front of the first."""
    first = list(ids[:limit])
    if first:
        yield Window([begins], first)
    for at in range(len(first), len(ids), limit):
        end = min(at + limit, len(ids))
        before = list(ids[max(0, end - limit - 1) : at])
        yield Window(before, list(ids[at:end]))
