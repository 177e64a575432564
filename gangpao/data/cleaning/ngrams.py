"""Runs of words as 64-bit hashes, computed on whole documents at once: what deduplication and decontamination compare.

A unit is a word (letters, digits and marks, in lower case) or one Han or Kana character; spaces, punctuation and markup are
nothing, so that a text and its reformatted copy have the same units. Where signs count, a unit is a word together with the
signs that follow it: in code operators and brackets (quotes, commas and semicolons, which formatters change, stay nothing),
in prose emoji and the signs of numbers (-7, 3 + 4). There are as many units either way, and what differs without signs
differs with them. A unit's hash is a polynomial of its characters, a run's hash a polynomial of its units, both modulo 2^64
in numpy with no loop over characters.

What it gives up: languages written without spaces other than Chinese and Japanese become long words; and two different
runs share a hash about once in 10^19 pairs.
"""

import functools
import re
import unicodedata
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

SYMBOL, WORD, SINGLE, SPACE = range(4)
Signs = Literal["none", "few", "all"]
BMP = 1 << 16
_MAX_POWER = 64
# Those below U+10000 that mean something; the stars, ticks and arrows among them are bullets more often than words.
_EMOJI = "⌚⌛⏩⏪⏫⏬⏰⏳☔☕☹☺♿⚓⚡⚽⚾⛄⛅⛔⛪⛵⛺⛽✅✊✋✨❌❎❓❔❗❤➕➖➗"
# A sign in front of a number, or between two with spaces around it (without, 5-7 is a range and 1/2/2020 a date). A letter
# that stands alone is a number, too; one behind an apostrophe does not stand alone.
_LONG_SIGNS = r"\*\*|//|<=|>=|==|!=|<>"
_NUMBER_SIGN = re.compile(
    r"(?:^|(?<=[\s(:=|]))[-\u2212+](?=\.?\d)"
    rf"|(?:(?<=\d )|(?<=[a-z] )(?<![\w'’][a-z] ))(?:{_LONG_SIGNS}|[-\u2212+*/%×÷=<>≤≥≠^])"
    r"(?= (?:[-\u2212]?\d|[a-z](?![\w'’])))"
    rf"|(?<=\d)(?:{_LONG_SIGNS}|[+*%×÷=<>≤≥≠^])(?=\d)",
    re.M,
)
_FORMATTING = "'\"`,;\\‘’“”，；、。"  # what formatters and typesetters change in code


def classes(text: str) -> npt.NDArray[np.uint8]:
    """SYMBOL, WORD, SINGLE (Han, Kana) or SPACE for every character."""
    return classes_of(points(text))


def points(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text; a lone surrogate becomes a question mark."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


def classes_of(code: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """The same for code points."""
    kinds = _table()[np.minimum(code, BMP - 1)]
    if len(code) and int(code.max()) >= BMP:  # rare: the supplementary Han characters are in planes 2 and 3
        kinds[(code >= 0x20000) & (code < 0x40000)] = SINGLE
    return kinds


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    table = np.zeros(BMP, np.uint8)
    for c in range(BMP - 1):
        kind = unicodedata.category(chr(c))
        if kind[0] in "LMN":
            table[c] = WORD
        elif kind[0] == "Z" or chr(c).isspace():
            table[c] = SPACE
    for first, last in ((0x3005, 0x3007), (0x3041, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
        table[first : last + 1][table[first : last + 1] == WORD] = SINGLE
    return table


def mix(x: U64) -> U64:
    """Spread every bit of each number over all of them (the finishing step of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.cache
def _powers(count: int, base: int) -> U64:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def units(text: str, signs: Signs = "none") -> U64:
    """One hash for each word or Han character, in order, together with the signs behind it as far as they count.

    Signs in front of the first word are a unit of their own.
    """
    code = points(text.lower())
    kinds = classes_of(code)
    word = kinds == WORD
    inside = word | (kinds == SINGLE)
    # A unit starts at a Han character, or at a letter behind anything else.
    starts = inside.copy()
    starts[1:] &= ~(word[1:] & word[:-1])
    if signs != "none":
        inside |= _few_signs(text.lower(), code) if signs == "few" else (kinds == SYMBOL) & ~_among(code, _FORMATTING)
        starts[np.flatnonzero(inside)[:1]] = True
    first = np.flatnonzero(starts[inside])
    if not len(first):
        return np.empty(0, np.uint64)
    letters = mix(code[inside].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    lengths = np.diff(first, append=len(letters))
    place = (np.arange(len(letters)) - np.repeat(first, lengths)) % _MAX_POWER
    return mix(np.add.reduceat(letters * _powers(_MAX_POWER, 0x2545F4914F6CDD1D)[place], first))


def _few_signs(text: str, code: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """The signs that are content in prose too."""
    found = ((code >= 0x1F000) & (code < 0x1FB00)) | _among(code, _EMOJI)
    for match in _NUMBER_SIGN.finditer(text):
        found[match.start() : match.end()] = True
    return found


def _among(code: npt.NDArray[np.uint32], characters: str) -> npt.NDArray[np.bool_]:
    """Which code points are one of these characters below U+10000."""
    found: npt.NDArray[np.bool_] = _members(characters)[np.minimum(code, BMP - 1)]
    return found


@functools.cache
def _members(characters: str) -> npt.NDArray[np.bool_]:
    table = np.zeros(BMP, np.bool_)
    table[[ord(c) for c in characters]] = True
    return table


def runs(found: U64, length: int) -> U64:
    """The hash of every `length` units in a row; empty when there are fewer."""
    count = len(found) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    powers = _powers(length, 0xD6E8FEB86659FD93)
    total: Any = np.zeros(count, np.uint64)
    for i in range(length):
        total += found[i : i + count] * powers[i]
    return mix(total)


def shingles(found: U64, length: int) -> U64:
    """The set of runs of a text's units, sorted; a text shorter than one run is one run itself."""
    return np.unique(runs(found, min(length, max(1, len(found)))))
