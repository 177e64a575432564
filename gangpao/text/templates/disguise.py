"""What people typed that looks like markup: found in texts, and made unrecognisable while a foreign template renders them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import SpecialFinder


def texts_in(value: Any) -> Iterator[str]:
    """All strings in something like JSON, keys included. (Their repr would hide private characters behind backslashes.)"""
    left = [value]
    while left:
        match left.pop():
            case str(text):
                yield text
            case Mapping() as fields:
                left += [*fields, *fields.values()]
            case Sequence() as items:
                left += items


class Disguise:
    """Control tokens (and `marks`) spelled in contents, made unrecognisable and recognisable again: their first character
    becomes one of Unicode's private ones that occurs in none of `texts`. marks: finds the marks under their disguise."""

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str], texts: Sequence[str]) -> None:
        pieces = [*(tokenizer.vocabulary.pieces[i] for i in tokenizer.control_ids), *marks]
        self._finder = SpecialFinder(pieces)
        used = set("".join(texts))
        free = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in used)
        self._masks = {first: next(free) for first in sorted({piece[0] for piece in pieces})}
        self._back = {ord(mask): first for first, mask in self._masks.items()}
        self.marks = SpecialFinder([self._masks[mark[0]] + mark[1:] for mark in marks])

    def on(self, text: str) -> str:
        while found := self._finder.occurring(text):
            for piece in found:
                text = text.replace(piece, self._masks[piece[0]] + piece[1:])
        return text

    def off(self, text: str) -> str:
        return text.translate(self._back)
