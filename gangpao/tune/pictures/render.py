"""A conversation with pictures as ids: a tokenizer that writes the ids of a picture where its mark stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gangpao.data.sources.pictures import cut

if TYPE_CHECKING:
    from gangpao.text.tokenizer import Tokenizer

Layouts = Mapping[int, list[str | list[int]]]


class SeeingTokenizer:
    """A tokenizer for one conversation. layouts: by the number of a picture, the texts of its marks and the ids of its rows."""

    def __init__(self, tokenizer: Tokenizer, layouts: Layouts) -> None:
        self._tokenizer, self._layouts = tokenizer, layouts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        """As the tokenizer does, with pictures."""
        out: list[int] = []
        for piece in cut(text):
            if isinstance(piece, str):
                out += self._tokenizer.encode(piece, **options)
            else:
                for part in self._layouts[piece]:
                    out += self._marks(part) if isinstance(part, str) else part
            options = {**options, "start": False}
        return out

    def _marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._tokenizer.vocabulary.split(text, parse_special=True):
            ids += [piece] if isinstance(piece, int) else self._tokenizer.encode(piece, start=False)
        return ids
