"""Byte-level BPE in plain Python, for systems without the tokenizers library (it is Rust, and has no wheel for Android).

The same ids, by the same two steps: the pre-tokenizer's expressions cut a text into words, and the bytes of a word are merged, the
pair of the lowest rank first, the leftmost of equals. Expressions are written for Oniguruma (pretokenizers.py): its classes of
characters become ranges from Python's table of Unicode, because Python's own \\s and \\w are other sets.

What it gives up: speed (words are remembered, so a prompt of 4,000 tokens takes tenths of a second on a PC), and characters that
one of the two tables of Unicode does not know yet.
"""

import functools
import heapq
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from gangpao.text.pretokenizers import PreTokenizer
from gangpao.text.remembered import Remembered
from gangpao.text.vocabulary import BYTE_LEVEL, WHITE_SPACE

_REMEMBERED = 64  # characters of the longest word worth remembering
_SPACE = "".join(f"\\U{ord(c):08x}" for c in WHITE_SPACE)  # inside of brackets
# Everything assigned so far; between and behind lie unassigned and private places.
_ASSIGNED = (range(0x32400), range(0xE0000, 0xE0200))


class ByteLevelMerger:
    """text -> ids. ids: ordinary piece -> id; merges: pairs in the order of their ranks."""

    def __init__(self, ids: Mapping[str, int], merges: Iterable[tuple[str, str]], rule: PreTokenizer) -> None:
        self._cuts = [expression(pattern) for pattern in rule.patterns]
        self._whole = dict(ids) if rule.whole_words else {}
        self._spelled = [character for character, _ in sorted(BYTE_LEVEL.items(), key=lambda pair: pair[1])]
        self._bytes = [ids.get(character) for character in self._spelled]
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            product = ids.get(left + right)
            if left in ids and right in ids and product is not None:
                self._ranks[ids[left], ids[right]] = rank, product
        self._remembered = Remembered(self._merged, _REMEMBERED)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special pieces."""
        return self._remembered.ids(self._words(text))

    def _words(self, text: str) -> Iterable[str]:
        words: Iterable[str] = [text] if text else []
        for cut in self._cuts:
            words = chain.from_iterable(map(functools.partial(_pieces, cut), words))
        return words

    def _merged(self, text: str) -> list[int]:
        """The merge loop: a heap of (rank, place, left, right, product), entries checked for staleness when popped.

        after[i] is the place of the next symbol, 0 once symbol i has been merged away.
        """
        word = text.encode()
        whole = self._whole.get("".join(self._spelled[b] for b in word))
        if whole is not None:
            return [whole]
        symbols = [i for b in word if (i := self._bytes[b]) is not None]
        ranks, count = self._ranks, len(symbols)
        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        heap: list[tuple[int, int, int, int, int]] = []

        def propose(left: int, right: int) -> None:
            pair = symbols[left], symbols[right]
            if (found := ranks.get(pair)) is not None:
                heapq.heappush(heap, (found[0], left, *pair, found[1]))

        for i in range(count - 1):
            propose(i, i + 1)
        while heap:
            _, left, first, second, product = heapq.heappop(heap)
            right = after[left]
            if not right or right >= count or (symbols[left], symbols[right]) != (first, second):
                continue
            symbols[left], after[left], after[right] = product, after[right], 0
            if after[left] < count:
                before[after[left]] = left
                propose(left, after[left])
            if before[left] >= 0:
                propose(before[left], left)
        return [symbols[i] for i in range(count) if after[i]]


def _pieces(cut: re.Pattern[str], text: str) -> Iterator[str]:
    """Matches, and what lies between them."""
    at = 0
    for match in cut.finditer(text):
        start, end = match.span()
        if start == end:
            continue
        if start > at:
            yield text[at:start]
        yield text[start:end]
        at = end
    if at < len(text):
        yield text[at:]


# --- expressions


@functools.cache
def expression(pattern: str) -> re.Pattern[str]:
    """An expression of Oniguruma as one of Python's. Its classes are \\p{..}, \\s and \\S; `$` is an end of a line."""
    out, inside, at = [], False, 0
    while at < len(pattern):
        sign = pattern[at]
        escape = pattern[at : at + 2]
        if escape == "\\p":
            end = pattern.index("}", at)
            ranges = _ranges(pattern[at + 3 : end])
            out.append(ranges if inside else f"[{ranges}]")
            at = end + 1
            continue
        if escape in ("\\s", "\\S"):
            if inside and escape == "\\S":
                raise ValueError(f"\\S inside of brackets: {pattern}")
            out.append(_SPACE if inside else f"[{'^' * (escape[1] == 'S')}{_SPACE}]")
        elif sign == "\\":
            out.append(escape)
        elif inside and sign == "[":
            out.append("\\[")
        elif sign == "$" and not inside:
            out.append("(?=\\n|\\Z)")
        else:
            inside = sign == "[" or (inside and sign != "]")
            out.append(f"\\{sign}" if inside and sign in "&~|-" and _doubled(pattern, at) else sign)
        at += 2 if sign == "\\" else 1
    return re.compile("".join(out))


def _doubled(pattern: str, at: int) -> bool:
    """Whether a sign stands twice, which Python may one day read as an operation on sets."""
    return pattern[at : at + 2] == pattern[at] * 2


@functools.cache
def _ranges(name: str) -> str:
    """Characters whose category begins with a name (L, Lu, N ...), as the inside of brackets."""
    return "".join(
        f"\\U{first:08x}-\\U{last:08x}" for category, first, last in _categories() if category.startswith(name)
    )


@functools.cache
def _categories() -> list[tuple[str, int, int]]:
    """(category, first, last) of every run of characters of one category."""
    out: list[tuple[str, int, int]] = []
    category = unicodedata.category
    for span in _ASSIGNED:
        begun, known = span.start, category(chr(span.start))
        for code in span:
            found = category(chr(code))
            if found != known:
                out.append((known, begun, code - 1))
                begun, known = code, found
        out.append((known, begun, span.stop - 1))
    return out
