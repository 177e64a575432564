"""SentencePiece BPE as llama.cpp runs it: merge the adjacent pair whose joined piece scores highest, leftmost first.

The tokenizers library merges by rank, and different ways to build one piece then have different ranks, where here they
have one score; long runs ("aaaaaaa") come out differently. So the loop is our own. Two things keep it fast in Python.
No merge can cross a border between two characters that stand side by side in no piece, so the text is first cut there,
exactly; and the short chunks this leaves (words, mostly) are remembered with their ids.

What it gives up: unigram models, and re-segmenting of pieces marked unused, which llama.cpp does not do either.
"""

import heapq
from collections.abc import Iterator, Sequence

from gangpao.text.remembered import Remembered
from gangpao.text.vocabulary import Kind, Vocabulary

_REMEMBERED = 48  # characters of the longest chunk worth remembering


class ScoreMerger:
    """text -> ids by piece scores. `encode` takes the text as it is, spaces and all."""

    def __init__(self, vocabulary: Vocabulary, scores: Sequence[float]) -> None:
        if len(scores) < len(vocabulary.pieces):
            raise ValueError(f"{len(vocabulary.pieces)} pieces but only {len(scores)} scores in the tokenizer")
        mergeable = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED, Kind.UNDEFINED)
        kinds = vocabulary.kinds
        self._ids = {piece: i for piece, i in vocabulary.ids.items() if kinds[i] in mergeable}
        self._costs = [-float(score) for score in scores]
        self._bytes = [vocabulary.ids.get(f"<0x{b:02X}>", vocabulary.unk_id) for b in range(256)]
        self._pairs: set[str] = set()
        for piece in self._ids:
            self._pairs.update(map(str.__add__, piece, piece[1:]))
        self._remembered = Remembered(self._merge, _REMEMBERED)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special pieces."""
        return self._remembered.ids(self._chunks(text.replace(" ", "\u2581")))

    def _chunks(self, text: str) -> Iterator[str]:
        pairs, start = self._pairs, 0
        for i, pair in enumerate(map(str.__add__, text, text[1:]), 1):
            if pair not in pairs:
                yield text[start:i]
                start = i
        if start < len(text):
            yield text[start:]

    def _merge(self, chunk: str) -> list[int]:
        """The merge loop: a heap of (cost, left, right, end of the pair), entries checked for staleness when popped.

        A symbol is named by the index of its first character; end[i] is 0 once symbol i has been merged away.
        """
        ids, costs, n = self._ids, self._costs, len(chunk)
        end = list(range(1, n + 1))
        before = list(range(-1, n - 1))
        heap: list[tuple[float, int, int, int]] = []
        for i in range(n - 1):
            if (token := ids.get(chunk[i : i + 2])) is not None:
                heap.append((costs[token], i, i + 1, i + 2))
        heapq.heapify(heap)
        while heap:
            _, left, right, stop = heapq.heappop(heap)
            if not end[left] or end[left] != right or end[right] != stop:
                continue
            end[left], end[right] = stop, 0
            if stop < n:
                before[stop] = left
                if (token := ids.get(chunk[left : end[stop]])) is not None:
                    heapq.heappush(heap, (costs[token], left, stop, end[stop]))
            previous = before[left]
            if previous >= 0 and (token := ids.get(chunk[previous:stop])) is not None:
                heapq.heappush(heap, (costs[token], previous, left, stop))
        return self._collect(chunk, end)

    def _collect(self, chunk: str, end: list[int]) -> list[int]:
        out: list[int] = []
        i = 0
        while i < len(chunk):
            piece = chunk[i : end[i]]
            token = self._ids.get(piece)
            if token is not None:
                out.append(token)
            else:
                out += [t for b in piece.encode() if (t := self._bytes[b]) is not None]
            i = end[i]
        return out
