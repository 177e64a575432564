"""The table behind a tokenizer: pieces, their kinds, which of them end a generation, and special pieces in a text.

Every piece has a kind. Ordinary pieces are what merging produces; control pieces (<|im_end|>, </s>) steer the model and
are never produced from text unless the caller asks for it; user-defined pieces (<tool_call>, runs of spaces) are looked
for in every text before anything is merged. Special pieces are cut out longest first, which is llama.cpp's order.

Where this differs from llama.cpp: it marks pieces as end of generation by their text alone, even when the vocabulary
calls them ordinary and builds them by merging, so that "</s>", an ordinary HTML tag for Qwen2, would stop an answer. Here
a piece that merging produces stays ordinary. And control pieces take no part in merging at all, so that no text can
spell one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal


class Kind(IntEnum):
    """The values of tokenizer.ggml.token_type."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SpacePrefix = Literal["never", "first", "always"]

# Pieces that mean "the answer is over" wherever they occur, after llama.cpp's list.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>", "<turn|>",
    "<end_of_utterance>", "<|tool_response>", "[e~[", "<｜end▁of▁sentence｜>",
)  # fmt: skip
# Fill-in-the-middle pieces that end an answer (padding, repository, file), and those that do not.
_FIM_ENDS = (
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
)  # fmt: skip
_FIM_PARTS = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>",
)  # fmt: skip


# Unicode's White_Space, which Hugging Face's library strips; str.strip() takes U+001C to U+001F as well.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's stand-in character for each byte: itself where printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTE_LEVEL = _byte_level_alphabet()


@dataclass(slots=True)
class Vocabulary:
    """Pieces by id with their kinds, as a file declares them.

    byte_level: ordinary pieces are spelled in GPT-2's alphabet of bytes; otherwise in text with U+2581 for a space.
    merged: pieces that merging can produce (see the module docstring). strips: id -> (left, right), special pieces that
    take the white space beside them. ends: further ids that end a generation, from the file's metadata.
    normalized: user-defined pieces that a merger looks for after normalizing, and `split` does not.
    """

    pieces: list[str]
    kinds: bytearray
    byte_level: bool
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    adds_bos: bool = False
    space_prefix: SpacePrefix = "never"
    merged: frozenset[str] = frozenset()
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    ends: Iterable[int] = ()
    normalized: frozenset[int] = frozenset()
    ids: dict[str, int] = field(init=False)
    end_ids: frozenset[int] = field(init=False)
    control_ids: frozenset[int] = field(init=False)
    _finders: "dict[bool, SpecialFinder]" = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.kinds) == len(self.pieces)
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        if len(self.ids) != len(self.pieces):
            twice = next(p for i, p in enumerate(self.pieces) if self.ids[p] != i)
            raise ValueError(f"the vocabulary holds the piece {twice!r} twice")
        self.end_ids = self._mark_ends()
        self.control_ids = frozenset(i for i, k in enumerate(self.kinds) if k in (Kind.CONTROL, Kind.UNKNOWN))

    def _named(self, names: Iterable[str]) -> set[int]:
        """Ids of those of `names` that are not ordinary text here; they become control pieces."""
        found = {self.ids[n] for n in names if n in self.ids}
        found = {i for i in found if not (self.kinds[i] == Kind.NORMAL and self.pieces[i] in self.merged)}
        for i in found:
            self.kinds[i] = Kind.CONTROL
        return found

    def _mark_ends(self) -> frozenset[int]:
        self._named(_FIM_PARTS)
        ends = self._named(_ENDS) | self._named(_FIM_ENDS) | set(self.ends)
        if self.eos_id is not None:
            ends.add(self.eos_id)
        # OpenAI's harmony and Solar mark the end of a message, not of the answer, with <|end|>.
        if {"<|return|>", "<|call|>"} <= self.ids.keys() or {"<|flush|>", "<|calls|>"} <= self.ids.keys():
            ends.discard(self.ids.get("<|end|>", -1))
        return frozenset(ends)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a piece stands for; a special piece's own text; nothing for unused pieces and padding rows."""
        if not 0 <= token < len(self.pieces):
            return b""
        piece, kind = self.pieces[token], self.kinds[token]
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
            return piece.encode()
        if kind == Kind.BYTE:
            return bytes([int(piece[3:5], 16)])
        if kind != Kind.NORMAL:
            return b""
        if not self.byte_level:
            return piece.replace("\u2581", " ").encode()
        return b"".join(bytes([BYTE_LEVEL[c]]) if c in BYTE_LEVEL else c.encode() for c in piece)

    def split(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Cut special pieces out of a text: strings to merge, and ids. Without parse_special user-defined ones only."""
        if parse_special not in self._finders:
            wanted = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED) if parse_special else (Kind.USER_DEFINED,)
            pieces = [self.pieces[i] for i, k in enumerate(self.kinds) if k in wanted and i not in self.normalized]
            self._finders[parse_special] = SpecialFinder(pieces)
        parts: list[str | int] = [text]
        for piece in self._finders[parse_special].occurring(text):
            token = self.ids[piece]
            left, right = self.strips.get(token, (False, False))
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or piece not in part:
                    cut.append(part)
                    continue
                runs = part.split(piece)
                for n, run in enumerate(runs):
                    run = run.lstrip(WHITE_SPACE) if right and n else run
                    cut.append(run.rstrip(WHITE_SPACE) if left and n < len(runs) - 1 else run)
                    cut.append(token)
                cut.pop()
            parts = cut
        return (part for part in parts if part != "")


class SpecialFinder:
    """Which of a set of strings occur in a text, longest first; a few nanoseconds a character whatever their number.

    A lookahead for the strings' first two characters finds candidates; a dictionary by length confirms them.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._order = {s: n for n, s in enumerate(sorted(set(strings) - {""}, key=lambda s: (-len(s.encode()), s)))}
        self._lengths: dict[str, list[int]] = {}
        for s in self._order:
            self._lengths.setdefault(s[:2], []).append(len(s))
        self._lengths = {head: sorted(set(lengths)) for head, lengths in self._lengths.items()}
        heads = "|".join(re.escape(head) for head in sorted(self._lengths, key=len, reverse=True))
        self._heads = re.compile(f"(?={heads})") if heads else None

    def occurring(self, text: str) -> list[str]:
        """Those of the strings that `text` contains, longest first."""
        if self._heads is None:
            return []
        found: set[str] = set()
        for match in self._heads.finditer(text):
            at = match.start()
            for head in (text[at : at + 2], text[at : at + 1]):
                for length in self._lengths.get(head, ()):
                    candidate = text[at : at + length]
                    if candidate in self._order:
                        found.add(candidate)
        return sorted(found, key=self._order.__getitem__)

    def cut(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is one of the strings; where strings overlap the longer one is found."""
        pieces = [(text, False)] if text else []
        for found in self.occurring(text):
            pieces = [cut for piece in pieces for cut in ([piece] if piece[1] else _around(piece[0], found))]
        return pieces


def _around(text: str, found: str) -> Iterator[tuple[str, bool]]:
    for i, between in enumerate(text.split(found)):
        if i:
            yield found, True
        if between:
            yield between, False
