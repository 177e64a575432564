"""Text to ids and back, for any checkpoint: one Tokenizer, built from GGUF metadata or from a Hugging Face folder.

A vocabulary (vocabulary.py) cuts the special pieces out of a text; what lies between goes to a merger: byte-level BPE
on the tokenizers library (bpe.py where that is missing) with the pre-tokenizer the file names (pretokenizers.py), or
SentencePiece's score-driven merging (spm.py). Text is never trusted: unless parse_special is given, "<|im_end|>" typed by a
user becomes ordinary tokens. Decoding goes through bytes, so that a character cut in two by the vocabulary comes out whole;
bytes that are no UTF-8 become U+FFFD, in a stream exactly as in one piece.

Ids equal llama.cpp's for the same file, but for what vocabulary.py says. What it gives up: unigram (T5), WordPiece
(BERT) and RWKV vocabularies, refused by name.
"""

import codecs
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gangpao.text import hf_folder
from gangpao.text.mergers import Merger, SpacePrefixed, byte_level_merger
from gangpao.text.normalizers import KEY as NORMALIZER
from gangpao.text.normalizers import PREFIX, SPACES, normal_pieces, normalized, read, without_prefix
from gangpao.text.pretokenizers import by_name
from gangpao.text.spm import ScoreMerger
from gangpao.text.thoughts import KNOWN
from gangpao.text.vocabulary import Kind, SpacePrefix, Vocabulary

# Keys of our own, for what GGUF has no word for; other programs pass them over.
END_IDS = "gangpao.tokenizer.end_token_ids"  # every id that ends an answer
LSTRIP_IDS = "gangpao.tokenizer.lstrip_token_ids"  # pieces that take the white space before them
RSTRIP_IDS = "gangpao.tokenizer.rstrip_token_ids"  # and after them
NORMALIZED_IDS = "gangpao.tokenizer.normalized_token_ids"  # pieces that are looked for after normalizing
SPACE_PREFIX = "gangpao.tokenizer.space_prefix"  # "first": a space in front of a text, but not after a special piece


# Control pieces that published checkpoints write around calls: <tool_call>, [TOOL_CALLS], [ARGS], <|START_ACTION|> ...
_OF_CALLS = re.compile(
    r"(tool|function)[ _▁-]?(call|sep)|^\[(ARGS|CALL_ID)\]$|(START|END)_ACTION|tools_(prefix|suffix)", re.I
)


@dataclass(slots=True)
class Tokenizer:
    """A vocabulary and a merger. `merge_first` serves a run that starts a text where the format treats it differently
    (a space is put in front); merge serves the others."""

    vocabulary: Vocabulary
    merge: Merger
    merge_first: Merger
    chat_template: str | None = None
    _bytes: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> "Tokenizer":
        """From a GGUF file's key-value pairs (arrays as lists or numpy arrays).

        Raises ValueError naming the key when one is missing, damaged, or names a vocabulary we do not have.
        """
        return _from_gguf(metadata)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """From a Hugging Face folder: tokenizer.json, else tokenizer.model, else vocab.json + merges.txt."""
        return cls(*hf_folder.load(path))

    @property
    def vocab_size(self) -> int:
        """Number of pieces; a model's embedding may have more rows."""
        return len(self.vocabulary.pieces)

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.vocabulary.eos_id

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects its BOS in front of every text."""
        return self.vocabulary.adds_bos

    @property
    def end_ids(self) -> frozenset[int]:
        """Every id that ends a generation."""
        return self.vocabulary.end_ids

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that text becomes only with parse_special."""
        return self.vocabulary.control_ids

    @property
    def text_ids(self) -> frozenset[int]:
        """Pieces that mark thoughts (thoughts.py) or calls of functions. They stay in an answer's text even where a file calls them
        control pieces."""
        thoughts = frozenset(i for marks in KNOWN for mark in marks if (i := self.vocabulary.ids.get(mark)) is not None)
        return thoughts | {i for i in self.control_ids if _OF_CALLS.search(self.vocabulary.pieces[i])} - self.end_ids

    def id_of(self, piece: str) -> int | None:
        """The id of a piece spelled as the vocabulary spells it, e.g. "<|im_end|>"."""
        return self.vocabulary.ids.get(piece)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False, start: bool = True) -> list[int]:
        """Ids of a text. Lone surrogates count as U+FFFD.

        parse_special turns the text of control pieces into them: only for text of our own. start=False says that the
        text continues another one, so that no space is put in front where SentencePiece would.
        """
        ids: list[int] = []
        if add_bos:
            if self.bos_id is None:
                raise ValueError("add_bos: this vocabulary has no BOS piece; pass add_bos=tokenizer.adds_bos")
            ids.append(self.bos_id)
        scheme, fresh = self.vocabulary.space_prefix, start
        for part in self.vocabulary.split(_well_formed(text), parse_special):
            if isinstance(part, int):
                ids.append(part)
                fresh = scheme == "always"
            else:
                ids += (self.merge_first if fresh and scheme != "never" else self.merge).encode(part)
                fresh = False
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one piece; a special piece's text; b"" for ids that stand for nothing."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self.vocabulary.token_bytes(token)
        return found

    def decode(self, ids: Iterable[int], *, keep_special: bool = False, start: bool = True) -> str:
        """Text of ids without control pieces, unless kept. start=False: keep the first space, the ids continue a text."""
        stream = StreamDecoder(self, keep_special=keep_special, start=start)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, *, keep_special: bool = False, start: bool = True) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self, keep_special=keep_special, start=start)


class StreamDecoder:
    """Text piece by piece: complete characters only. All pushes and the flush together are Tokenizer.decode of the ids."""

    def __init__(self, tokenizer: Tokenizer, *, keep_special: bool = False, start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = frozenset() if keep_special else tokenizer.control_ids - tokenizer.text_ids
        self._drop_space = start and tokenizer.vocabulary.space_prefix != "never"
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What can be said for certain after one more id; often a word, sometimes nothing."""
        if token in self._skip:
            return ""
        data = self._tokenizer.token_bytes(token)
        if self._drop_space and data:
            self._drop_space = False
            if token not in self._tokenizer.control_ids:
                data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    @property
    def whole(self) -> bool:
        """Whether no character is open: all bytes so far made one, or part of none."""
        return not self._decoder.getstate()[0]

    def flush(self) -> str:
        """What is left of a character that never became whole, as U+FFFD; the decoder starts over."""
        return self._decoder.decode(b"", final=True)


def _well_formed(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        named = {None: "there is no tokenizer.ggml.model", "no_vocab": "the file has no vocabulary"}
        reason = named.get(model, f"tokenizer.ggml.model is {model!r}") if isinstance(model, str | None) else "damaged"
        raise ValueError(
            f"no tokenizer in this GGUF file that gangpao can use: {reason}. It knows gpt2 (byte-level BPE) and llama "
            "(SentencePiece BPE)."
        )
    pieces = _strings(metadata, "tokenizer.ggml.tokens")
    pieces = [piece or f"[EMPTY_{i}]" for i, piece in enumerate(pieces)]
    kinds = _kinds(metadata, pieces)
    template = metadata.get("tokenizer.chat_template")
    build = _byte_level if model == "gpt2" else _sentencepiece
    vocabulary, merge = build(metadata, pieces, kinds)
    steps = read(metadata[NORMALIZER]) if NORMALIZER in metadata else []
    prefixed: Merger = merge if vocabulary.space_prefix == "never" else SpacePrefixed(merge)
    if vocabulary.normalized and not vocabulary.byte_level:  # their looks depend on what SentencePiece does to a text
        steps += [PREFIX, SPACES] if vocabulary.space_prefix == "always" else [SPACES]
    later = without_prefix(steps)
    if later != steps:  # a prefix of the normalizer's own
        vocabulary.space_prefix, prefixed = "always", merge
    added = normal_pieces(steps, {vocabulary.pieces[i]: i for i in vocabulary.normalized})
    first, rest = normalized(steps, prefixed, added), normalized(later, merge, added)
    return Tokenizer(vocabulary, rest, first, template if isinstance(template, str) else None)


def _byte_level(metadata: Mapping[str, object], pieces: list[str], kinds: bytearray) -> tuple[Vocabulary, Merger]:
    merges = [_merge_pair(line) for line in _strings(metadata, "tokenizer.ggml.merges")]
    name = metadata.get("tokenizer.ggml.pre") or "default"
    if not isinstance(name, str):
        raise ValueError("tokenizer.ggml.pre must be a string")
    rule = by_name(name)
    vocabulary = Vocabulary(
        pieces,
        kinds,
        byte_level=True,
        bos_id=_id(metadata, "bos", len(pieces)),
        eos_id=_id(metadata, "eos", len(pieces)),
        unk_id=_id(metadata, "unknown", len(pieces)),
        adds_bos=_flag(metadata, "add_bos_token", rule.adds_bos),
        merged=frozenset(a + b for a, b in merges),
        strips=_strips(metadata, len(pieces)),
        normalized=_normalized(metadata, kinds),
        ends=_ends(metadata, len(pieces)),
    )
    vocabulary.adds_bos = vocabulary.adds_bos and vocabulary.bos_id is not None
    ordinary = {piece: i for piece, i in vocabulary.ids.items() if i not in vocabulary.control_ids}
    return vocabulary, byte_level_merger(ordinary, merges, rule)


def _sentencepiece(
    metadata: Mapping[str, object], pieces: list[str], kinds: bytearray
) -> tuple[Vocabulary, ScoreMerger]:
    scores = _array(metadata, "tokenizer.ggml.scores", len(pieces)).astype(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("tokenizer.ggml.scores holds a value that is no number")
    count = len(pieces)
    vocabulary = Vocabulary(
        pieces,
        kinds,
        byte_level=False,
        bos_id=_id(metadata, "bos", count, 1),
        eos_id=_id(metadata, "eos", count, 2),
        unk_id=_id(metadata, "unknown", count, 0),
        adds_bos=_flag(metadata, "add_bos_token", True),
        space_prefix=_space_prefix(metadata),
        strips=_strips(metadata, count),
        normalized=_normalized(metadata, kinds),
        ends=_ends(metadata, count),
    )
    vocabulary.adds_bos = vocabulary.adds_bos and vocabulary.bos_id is not None
    return vocabulary, ScoreMerger(vocabulary, scores.tolist())


def _merge_pair(line: str) -> tuple[str, str]:
    cut = line.find(" ", 1)
    return (line[:cut], line[cut + 1 :]) if cut > 0 else ("", "")


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    if value is None:
        raise ValueError(f"the GGUF file has no {key}: it carries no usable tokenizer")
    if not isinstance(value, list) or not value or not all(isinstance(s, str) for s in value):
        raise ValueError(f"{key} must be a list of strings that is not empty")
    return value


def _array(metadata: Mapping[str, object], key: str, length: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The numbers of the first `length` pieces."""
    value = metadata.get(key)
    if not isinstance(value, np.ndarray | list) or np.ndim(value) != 1 or len(value) < length:
        raise ValueError(f"{key} must be an array with a number for each of the {length} pieces")
    array = np.asarray(value[:length])
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{key} must hold numbers, not {array.dtype}")
    return array


def _kinds(metadata: Mapping[str, object], pieces: Sequence[str]) -> bytearray:
    """token_type as bytes; a byte piece that is not spelled <0xNN> counts as undefined."""
    if "tokenizer.ggml.token_type" not in metadata:
        return bytearray([Kind.NORMAL]) * len(pieces)
    array = _array(metadata, "tokenizer.ggml.token_type", len(pieces))
    if array.dtype.kind == "f":
        raise ValueError("tokenizer.ggml.token_type must hold integers")
    known = np.where((array >= 0) & (array <= int(max(Kind))), array, Kind.UNDEFINED)
    kinds = bytearray(known.astype(np.uint8).tobytes())
    spelled = {f"<0x{b:02X}>" for b in range(256)}
    for i in np.flatnonzero(known == Kind.BYTE).tolist():
        if pieces[i] not in spelled:
            kinds[i] = Kind.UNDEFINED
    return kinds


def _id(metadata: Mapping[str, object], name: str, count: int, default: int | None = None) -> int | None:
    """A special id, or its default; one outside the vocabulary counts as absent, as in llama.cpp."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    for candidate in (value, default):
        if isinstance(candidate, int | np.integer) and 0 <= int(candidate) < count:
            return int(candidate)
    return None


def _ends(metadata: Mapping[str, object], count: int) -> list[int]:
    names = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    named = [i for name in names if (i := _id(metadata, name, count)) is not None]
    return named + _ids(metadata, END_IDS, count)


def _ids(metadata: Mapping[str, object], key: str, count: int) -> list[int]:
    """An array of ids; those outside the vocabulary are left out."""
    if key not in metadata:
        return []
    value = metadata[key]
    array = np.asarray(value) if isinstance(value, np.ndarray | list) else np.empty((), bool)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{key} must be an array of ids")
    return [int(i) for i in array if 0 <= i < count]


def _strips(metadata: Mapping[str, object], count: int) -> dict[int, tuple[bool, bool]]:
    left, right = (set(_ids(metadata, key, count)) for key in (LSTRIP_IDS, RSTRIP_IDS))
    return {i: (i in left, i in right) for i in left | right}


def _normalized(metadata: Mapping[str, object], kinds: bytearray) -> frozenset[int]:
    return frozenset(i for i in _ids(metadata, NORMALIZED_IDS, len(kinds)) if kinds[i] == Kind.USER_DEFINED)


def _space_prefix(metadata: Mapping[str, object]) -> SpacePrefix:
    if not _flag(metadata, "add_space_prefix", True):
        return "never"
    return "first" if metadata.get(SPACE_PREFIX) == "first" else "always"


def _flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"tokenizer.ggml.{name} must be true or false, not {value!r}")
    return bool(value)
