"""What JSON from strangers may hold. It is counted before it is parsed: parsing cannot be interrupted, holds up everybody else,
and takes some fifty times the memory of the text.

Counted are a few characters outside of texts, by passes that take a fraction of the time of parsing. The bounds are several
times what any model's context holds; numbers have one of their own because prompts may be lists of token ids.
"""

import json
import math
from itertools import accumulate
from typing import Any

MAX_DEPTH = 128
MAX_VALUES = 100_000  # objects, lists and texts, names of fields included
MAX_NUMBERS = 400_000
MAX_ESCAPES = 4_000_000  # as many as there are characters in the longest text that is tokenized
_MAX_DIGITS = 1_000  # of a number with a point or an exponent

_BRACKETS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(c for c in range(256) if c not in _BRACKETS)


def check(raw: bytes, what: str) -> None:
    """Raises ValueError, beginning with `what`, for JSON (UTF-8) with too many values or too many levels."""
    outside, texts = _outside(raw, what)
    brackets = outside.translate(None, _NO_BRACKETS)
    if texts + len(brackets) // 2 > MAX_VALUES:
        raise ValueError(f"{what} has more than {MAX_VALUES} objects, lists and texts")
    if outside.count(b",") > MAX_NUMBERS:
        raise ValueError(f"{what} has more than {MAX_NUMBERS} values")
    # Each is a call of Python while it is parsed. (The e of true and false is harmless.)
    if sum(map(outside.count, (b".", b"e", b"E"))) > MAX_VALUES:
        raise ValueError(f"{what} has more than {MAX_VALUES} numbers with a point or an exponent")
    if max(accumulate(map(_BRACKETS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise ValueError(f"{what} is nested more than {MAX_DEPTH} levels deep")


def _outside(raw: bytes, what: str) -> tuple[bytes, int]:
    """What stands outside of texts, and how many texts there are."""
    escapes = raw.count(b"\\")
    if escapes > MAX_ESCAPES:
        raise ValueError(f"{what} has more than {MAX_ESCAPES} escaped characters")
    if escapes:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    texts = raw.count(b'"') // 2
    if texts > MAX_VALUES:
        raise ValueError(f"{what} has more than {MAX_VALUES} objects, lists and texts")
    return b"".join(raw.split(b'"')[::2]), texts


def loads(raw: bytes) -> Any:
    """Checked JSON as Python has it. Raises ValueError for what is not JSON, and for numbers that are not finite."""
    # As UTF-8 only: in UTF-16, which json.loads would guess, nothing would have been counted.
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogatepass")
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if len(text) > _MAX_DIGITS or not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is not a number that can be kept")
    return value
