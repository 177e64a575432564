"""What turns text without special pieces into ids: the interface, and those that run on the tokenizers library.

The library is imported when the first one is built. Our own mergers are in spm.py (SentencePiece scores) and bpe.py (byte-level BPE
where the library is missing).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from gangpao.text.bpe import ByteLevelMerger
from gangpao.text.pretokenizers import PreTokenizer
from gangpao.text.vocabulary import Vocabulary

LONG = 10_000  # characters


class Merger(Protocol):
    """What turns text without special pieces into ids."""

    def encode(self, text: str) -> list[int]: ...


class Loaded(NamedTuple):
    """What a checkpoint gives a Tokenizer; see there."""

    vocabulary: Vocabulary
    merge: Merger
    merge_first: Merger
    chat_template: str | None


class SpacePrefixed:
    """A merger that puts the space in front that SentencePiece starts a text with."""

    def __init__(self, merge: Merger) -> None:
        self._merge = merge

    def encode(self, text: str) -> list[int]:
        return self._merge.encode(" " + text)


class LibraryMerger:
    """A tokenizers.Tokenizer without added tokens or post-processing."""

    def __init__(self, library: "object") -> None:
        from tokenizers import Tokenizer as Library

        assert isinstance(library, Library)
        self._library = library

    def encode(self, text: str) -> list[int]:
        if len(text) < LONG:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        else:  # only this one lets other threads run meanwhile: a megabyte takes half a second
            (made,) = self._library.encode_batch_fast([text], add_special_tokens=False)
            ids = made.ids
        return ids


def byte_level_merger(ids: Mapping[str, int], merges: Iterable[tuple[str, str]], rule: PreTokenizer) -> Merger:
    """Byte-level BPE: on the tokenizers library, or without it in plain Python. Merges whose parts or product `ids` lacks are left
    out."""
    try:
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as Library
    except ImportError:
        return ByteLevelMerger(ids, merges, rule)

    known = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    library = Library(models.BPE(vocab=dict(ids), merges=known, ignore_merges=rule.whole_words))
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return LibraryMerger(library)
