"""Where the tokens of a server lie in a text whose characters they may cut in pieces.

Servers name tokens in different ways: by their text; by their bytes (`bytes:\\xe5\\x8c`); with U+FFFD for parts of a character, one
for one to three bytes; with SentencePiece's mark for a blank, or without the blank. So the text is walked through with every
place at which a token can end, forwards and then backwards, and what is left is every way in which the tokens make the text.
That is exact where offsets drift (a server that counts U+FFFD as characters), and says so where it cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PART = "\ufffd"
_BLANK = "\u2581"  # SentencePiece's


def tokens_behind(tokens: Sequence[str], text: str, border: int) -> int | None:
    """How many of the tokens of `text` begin at its first `border` characters' end or behind it; None where the tokens are not the
    text's, or do not tell. A token that lies across the border does not count, as in lm-eval. The first may be one that takes no
    room (BOS)."""
    data, at = text.encode("utf-8", "surrogatepass"), len(text[:border].encode("utf-8", "surrogatepass"))
    places = _places(tokens, data)
    if places is None:
        return None
    kinds = [{start >= at and end > start for start, end in ways} for ways in places]
    return None if any(len(kind) != 1 for kind in kinds) else sum(kind == {True} for kind in kinds)


def _places(tokens: Sequence[str], data: bytes) -> list[set[tuple[int, int]]] | None:
    """For each token the bytes at which it can begin and end, over all ways in which the tokens are the data; None without any."""
    forward: list[dict[int, set[int]]] = []  # for each token: where it can end -> from where
    places = {0}
    for number, token in enumerate(tokens):
        step: dict[int, set[int]] = {}
        spellings = _spellings(token)
        at_start = spellings | {s[1:] for s in spellings if s[:1] == b" "}  # SentencePiece puts a blank before a text
        for start in places:
            found = {start + len(s) for s in (spellings if start else at_start) if data.startswith(s, start)}
            if number == 0 and not found and _PART not in token:
                found = {0}
            for end in found | (_longer(token, data, start) if _PART in token else set()):
                step.setdefault(end, set()).add(start)
        forward.append(step)
        places = set(step)
    if len(data) not in places:
        return None
    found_places: list[set[tuple[int, int]]] = []
    alive = {len(data)}
    for step in reversed(forward):
        found_places.append({(start, end) for end in alive for start in step.get(end, ())})
        alive = {start for start, _ in found_places[-1]}
    return found_places[::-1]


def _spellings(token: str) -> set[bytes]:
    """What of the data a token may stand for, where all of it is known."""
    if re.fullmatch(r"bytes:(?:\\x[0-9a-f]{2})+", token):
        return {bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))}
    if _PART in token:
        return set()
    return {text.encode("utf-8", "surrogatepass") for text in (token, token.replace(_BLANK, " "), f" {token}")}


def _longer(token: str, data: bytes, start: int) -> set[int]:
    """Ends of a token of which some bytes are unknown: each U+FFFD is one to three of them."""
    places = {start}
    for known, part in re.findall(f"([^{_PART}]*)({_PART}?)", token):
        raw = known.encode()
        places = {p + len(raw) for p in places if data.startswith(raw, p)}
        if part:
            places = {p + n for p in places for n in (1, 2, 3) if p + n <= len(data)}
    return places
