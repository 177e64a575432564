"""Whether a text is prose, or code in a wide sense: programs, patches, tables, arithmetic, formulas, data.

In prose a sign is punctuation, and two spaces at a line's end are nothing. In code both may be the content: `a + b` is
not `a - b`, 7 degrees are not -7, and a patch whose lines lost a space does not apply. So duplicates and tidying ask first.

The idea: a line with a good share of signs that prose hardly has (operators, brackets, underscores) and digits is a line of
code. Where such lines hold a third of the text it is code: that is so for nine of ten of a collection of Python programs and
for none of 478 books and stories; manuals lie between. Signs cost little where they do not matter, and a program costs much where
they are not seen. A patch is known by its marks, SQL by the words it begins with. A document is of one kind; a source may name it
(`text_kind`).

What it gives up: one program quoted in a long article is prose like the article.
"""

import functools
import re
import unicodedata

import numpy as np
import numpy.typing as npt

from gangpao.data.cleaning.ngrams import BMP, SINGLE, SPACE, WORD, classes_of, points
from gangpao.data.config import TextKind

SAMPLE_CHARS = 50_000
LINE_THRESHOLD = 0.08
SHARE = 0.35
_SIGNS = "=<>+*%&|^~{}[]_;#@$\\`"
_HALF_SIGNS = "()-/"  # prose has some of them too
_HAN_WEIGHT = 2.5  # a Han character says as much as two or three letters
_DIGIT_WEIGHT = 0.25  # dates and prices are in every newspaper
_MARKERS = re.compile(r"^[ \t]*(?:#{1,6}|[-*+>])(?= )", re.M)  # of headings, lists and quotations
_SPACES = re.compile(r"\s")
_PATCH = re.compile(r"^(?:diff --git |@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@|--- \S.*\n\+\+\+ \S)", re.M)

# A statement of SQL in capitals: in one line it has few signs. UPDATE and SELECT alone begin posts and headings, too.
_QUERY = re.compile(
    r"\A\s*(?:SELECT\s[^;]{1,2000}?\sFROM|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|CREATE\s+TABLE)\b"
)


def is_code(text: str, kind: TextKind = "auto") -> bool:
    """Whether signs and spaces are content. kind: "prose" or "code" where a source knows, else "auto"."""
    if kind != "auto":
        return kind == "code"
    sample = text[:SAMPLE_CHARS]
    # Most prose has too few signs for any share of lines, and counting them is quick.
    few = len(_candidates().findall(sample)) < LINE_THRESHOLD * SHARE * (len(sample) - len(_SPACES.findall(sample)))
    if not few and code_share(text) >= SHARE:
        return True
    return _PATCH.search(text) is not None or _QUERY.match(text) is not None


def code_share(text: str) -> float:
    """The share of a text's characters, white space apart, that lie in lines of code; of a long text its beginning."""
    code = points(_MARKERS.sub("", text[:SAMPLE_CHARS]))
    if not len(code):
        return 0.0
    kinds = classes_of(code)
    ink = np.where(kinds == SPACE, 0.0, np.where(kinds == SINGLE, _HAN_WEIGHT, 1.0))
    starts = np.concatenate([[0], np.flatnonzero(code[:-1] == ord("\n")) + 1])
    lines = np.add.reduceat(ink, starts)
    signs = np.add.reduceat(_weights(code, kinds == WORD), starts)
    total = float(lines.sum())
    return float(lines[signs >= LINE_THRESHOLD * np.maximum(lines, 1)].sum()) / total if total else 0.0


def _weights(code: npt.NDArray[np.uint32], word: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """1 for a sign, less for a digit of a number; digits of names (w3, x86) are nothing."""
    weights = _table()[np.minimum(code, BMP - 1)]
    begins = word.copy()
    begins[1:] &= ~word[:-1]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(code)), 0))
    weights[word & (weights[first] == 0)] = 0.0
    return weights


@functools.cache
def _candidates() -> re.Pattern[str]:
    """A character that has a weight."""
    return re.compile(rf"[\d{re.escape(''.join(chr(c) for c in np.flatnonzero(_table() == 1)) + _HALF_SIGNS)}]")


@functools.cache
def _table() -> npt.NDArray[np.float32]:
    table = np.zeros(BMP, np.float32)
    for c in range(BMP - 1):
        kind = unicodedata.category(chr(c))
        table[c] = _DIGIT_WEIGHT if kind == "Nd" else float(kind == "Sm")
    table[[ord(sign) for sign in _SIGNS]] = 1.0
    table[[ord(sign) for sign in _HALF_SIGNS]] = 0.5
    return table
