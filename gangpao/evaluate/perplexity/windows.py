"""A document's ids to windows: what goes through a model from an empty cache, and which of its tokens count.

    strided     windows of `context` ids that begin `stride` apart; a window counts what no window before it counted, so
                every token counts once (the recipe for models of fixed length in Hugging Face's documentation)
    llama.cpp   windows of `context` ids side by side, of which the second half counts; the rest at the end is left out, and a
                model that wants BOS has it in place of every window's first id (llama-perplexity)

The first id of a document never counts: it is BOS, or nothing stands before it. Bytes are those of the raw text that the counted
tokens stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.text.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]
MOST_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """ids [n] as they go through a model; those from `first` on count, each predicted by all before it.

    original: what the text has in place of ids[0], which may be BOS. start: place of ids[0] in the document. bytes: see module.
    """

    ids: Ids
    first: int
    original: int
    start: int = 0
    bytes: int = 0

    @property
    def counted(self) -> int:
        """Tokens that count."""
        return len(self.ids) - self.first


@dataclass(frozen=True, slots=True)
class Windowing:
    """How documents are cut. stride None: as llama-perplexity does. Raises ValueError for numbers that make no sense."""

    context: int
    stride: int | None = None

    def __post_init__(self) -> None:
        if not 4 <= self.context <= MOST_CONTEXT:
            raise ValueError(f"context: {self.context} ids a window; give 4 to {MOST_CONTEXT}")
        if self.stride is not None and not 1 <= self.stride < self.context:
            raise ValueError(
                f"stride: {self.stride}; give 1 to {self.context - 1}, less than the context of {self.context}, so that every "
                "counted token has something before it"
            )

    @property
    def name(self) -> str:
        """As a result says it."""
        return "llama.cpp" if self.stride is None else "strided"

    @property
    def first(self) -> int:
        """Place of the first counted id of a window of llama.cpp's."""
        return self.context // 2 + 1

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, first counted), places in a document of so many ids."""
        if self.stride is None:
            for begin in range(0, length - self.context + 1, self.context):
                yield begin, begin + self.context, begin + self.first
            return
        counted = 1
        for begin in range(0, length, self.stride):
            end = min(begin + self.context, length)
            if end > counted:
                yield begin, end, counted
            counted = end
            if end == length:
                return


def windows_of(text: str, nbytes: int, tokenizer: Tokenizer, windowing: Windowing) -> list[Window]:
    """The windows of a document of so many bytes; none where it is too short for one."""
    adds_bos = tokenizer.adds_bos
    ids = np.array(tokenizer.encode(text, add_bos=adds_bos), np.int64)
    ends = _byte_ends(ids, nbytes, tokenizer, int(adds_bos))
    found = []
    for begin, end, counted in windowing.spans(len(ids)):
        part, original = ids[begin:end], int(ids[begin])
        if adds_bos and windowing.stride is None:
            part = with_bos(part, tokenizer)
        found.append(Window(part, counted - begin, original, begin, int(ends[end] - ends[counted])))
    return found


def with_bos(ids: Ids, tokenizer: Tokenizer) -> Ids:
    """The ids with BOS in place of the first where the model wants one."""
    if not tokenizer.adds_bos:
        return ids
    assert tokenizer.bos_id is not None
    changed = ids.copy()
    changed[0] = tokenizer.bos_id
    return changed


def _byte_ends(ids: Ids, nbytes: int, tokenizer: Tokenizer, before: int) -> npt.NDArray[np.int64]:
    """Bytes of the text before each id and behind the last [n + 1]; the first `before` ids stand for none.

    Pieces of byte-level vocabularies are the text's own bytes. Where a normalizer or a space in front changed it, the raw
    text's bytes are shared out in proportion.
    """
    lengths = np.array([0] * before + [len(tokenizer.token_bytes(int(i))) for i in ids[before:]], np.float64)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    return np.asarray(np.rint(ends * (nbytes / max(ends[-1], 1.0))), np.int64)
