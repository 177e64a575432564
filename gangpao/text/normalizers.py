"""What a tokenizer does to a text before anything is cut or merged: Unicode forms, lower case, fixed replacements.

A GGUF file has no word for it, so an export writes the steps as JSON under a key of our own, in the words of tokenizer.json.
Files come from strangers: only the steps named here are taken, no regular expressions, and none that blow a text up.

What it gives up: Replace with a regular expression, and the tables of SentencePiece (Precompiled); refused by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from gangpao.optional import needed
from gangpao.text.mergers import Merger
from gangpao.text.vocabulary import SpecialFinder

Step = Mapping[str, object]

KEY = "gangpao.tokenizer.normalizer"
MAX_STEPS = 32
MAX_GROWTH = 64  # characters out of one, at most, by replacements
MAX_CHARACTERS = 256  # of a replacement or prefix
# What SentencePiece does to a text, in these words; a GGUF file says it as tokenizer.ggml.add_space_prefix.
SPACES: Step = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREFIX: Step = {"type": "Prepend", "prepend": "\u2581"}
# Step -> the fields it may have, with their types.
_FIELDS: dict[str, dict[str, type]] = {
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Lowercase": {},
    "StripAccents": {},
    "Nmt": {},
    "BertNormalizer": {"clean_text": bool, "handle_chinese_chars": bool, "lowercase": bool},
    "Strip": {"strip_left": bool, "strip_right": bool},
    "Prepend": {"prepend": str},
    "Replace": {"pattern": dict, "content": str},
}


def steps_of(part: object) -> list[Step]:
    """A normalizer of tokenizer.json as a flat list of steps; none for null."""
    if not isinstance(part, Mapping):
        return []
    inner = part.get("normalizers")
    return [step for item in inner for step in steps_of(item)] if isinstance(inner, list) else [part]


def without_prefix(steps: Sequence[Step]) -> list[Step]:
    """The steps for a text that continues another one."""
    return [step for step in steps if step.get("type") != "Prepend"]


def check(steps: Sequence[Step]) -> None:
    """Raises ValueError naming the first step that is not taken from a file."""
    growth = 1.0
    for step in steps:
        kind = step.get("type")
        fields = _FIELDS.get(kind) if isinstance(kind, str) else None
        if fields is None:
            raise ValueError(f"the normalizer {kind!r:.40} is not one we apply; there are {', '.join(_FIELDS)}")
        if not all(isinstance(step.get(name), of) for name, of in fields.items()):
            raise ValueError(f"the normalizer {kind} needs {' and '.join(fields)}")
        if kind == "Replace":
            growth *= _growth(step)
        if len(str(step.get("prepend", ""))) > MAX_CHARACTERS:
            raise ValueError(f"the normalizer Prepend adds more than {MAX_CHARACTERS} characters")
    if len(steps) > MAX_STEPS or growth > MAX_GROWTH:
        raise ValueError(
            f"a normalizer of more than {MAX_STEPS} steps, or one that makes a text {MAX_GROWTH} times as long"
        )


def _growth(step: Step) -> float:
    pattern, content = step["pattern"], str(step["content"])
    text = pattern.get("String") if isinstance(pattern, Mapping) and len(pattern) == 1 else None
    if not isinstance(text, str) or not text:
        raise ValueError("the normalizer Replace has a regular expression, which we do not run from a file")
    if len(content) > MAX_CHARACTERS:
        raise ValueError(f"the normalizer Replace writes more than {MAX_CHARACTERS} characters")
    return max(1.0, len(content) / len(text))


def written(steps: Sequence[Step]) -> str:
    """The value of KEY. Raises ValueError as `check` does."""
    check(steps)
    return json.dumps([dict(step) for step in steps], ensure_ascii=False)


def read(value: object) -> list[Step]:
    """The steps of a file's KEY. Raises ValueError when they are damaged or not taken from a file."""
    try:
        steps = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        steps = None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"{KEY} must be a list of steps in JSON; the file is damaged")
    check(steps)
    return steps


def normalizer_of(steps: Sequence[Step]) -> Callable[[str], str]:
    """Text to normalized text. Raises ValueError for steps that the library does not take."""
    with needed("tokenizers", "a tokenizer that normalizes texts"):
        from tokenizers import Tokenizer as Library
        from tokenizers import models

    bare = json.loads(Library(models.BPE()).to_str())
    described = {"type": "Sequence", "normalizers": [dict(step) for step in steps]}
    try:
        normalizer = Library.from_str(json.dumps(bare | {"normalizer": described})).normalizer
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"normalizer: the tokenizers library does not take it: {error}") from error
    apply: Callable[[str], str] = normalizer.normalize_str
    return apply


class Normalized:
    """A merger of normalized text. pieces: added tokens that are looked for after normalizing, as they look then, with ids."""

    def __init__(self, steps: Sequence[Step], merge: Merger, pieces: Mapping[str, int]) -> None:
        self._normalize = normalizer_of(steps)
        self._merge = merge
        self._pieces = pieces
        self._finder = SpecialFinder(pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special pieces; none where nothing of it is left."""
        parts: list[str | int] = [self._normalize(text)]
        for piece in self._finder.occurring(str(parts[0])):
            parts = [cut for part in parts for cut in ([part] if isinstance(part, int) else self._around(part, piece))]
        return [
            i for part in parts if part != "" for i in ([part] if isinstance(part, int) else self._merge.encode(part))
        ]

    def _around(self, text: str, piece: str) -> list[str | int]:
        out: list[str | int] = []
        for run in text.split(piece):
            out += [run, self._pieces[piece]]
        return out[:-1]


def normalized(steps: Sequence[Step], merge: Merger, pieces: Mapping[str, int] | None = None) -> Merger:
    """The merger itself where there is nothing to normalize."""
    return Normalized(steps, merge, pieces or {}) if steps else merge


def normal_pieces(steps: Sequence[Step], ids: Mapping[str, int]) -> dict[str, int]:
    """Added tokens as they look in normalized text, with their ids; a prefix of the normalizer becomes part of them."""
    apply = normalizer_of(steps) if ids else str
    return {apply(piece): token for piece, token in ids.items()}
