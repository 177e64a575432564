"""Tokenizers from Hugging Face folders: tokenizer.json, SentencePiece's tokenizer.model, or vocab.json + merges.txt.

tokenizer.json runs on the library it was written for, with one change: added tokens are taken out of it and cut from
the text by our own vocabulary, so that text cannot spell a control token. tokenizer.model is a protocol buffer; the few
fields that matter are read here, and its pieces go to our own merger, so the sentencepiece package is not needed.
A vocab.json + merges.txt pair is taken for SentencePiece BPE with byte fallback, which is how MiniCPM-2B is passed on.

All of it is data: auto_map and Python files in the folder are not looked at. What it gives up: models other than BPE,
text normalisation tables in a tokenizer.model (precompiled_charsmap), byte-level pairs without a tokenizer.json.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gangpao.optional import needed
from gangpao.text.mergers import LibraryMerger, Loaded, Merger, SpacePrefixed
from gangpao.text.normalizers import Step, normal_pieces, normalized, steps_of, without_prefix
from gangpao.text.spm import ScoreMerger
from gangpao.text.vocabulary import Kind, SpacePrefix, Vocabulary

Json = dict[str, object]

# The files of a folder that belong to its tokenizer: what to copy beside a model.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Those of a folder that are there, by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


_BYTE_PIECES = {f"<0x{b:02X}>" for b in range(256)}
_PURPOSE = "the tokenizer of a Hugging Face folder"


def load(path: str | os.PathLike[str]) -> Loaded:
    """What Tokenizer.from_dir needs. Raises ValueError saying what is missing or not understood, and in which file."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds tokenizer.json")
    config = _Config(folder)
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder / "tokenizer.json", config)
    if (folder / "tokenizer.model").is_file():
        return _from_tokenizer_model(folder / "tokenizer.model", config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocab_and_merges(folder, config)
    raise ValueError(f"{folder} holds no tokenizer.json, no tokenizer.model, and no vocab.json with merges.txt")


class _Config:
    """What the small files beside a tokenizer say: special tokens, BOS, ends of generation, chat template."""

    def __init__(self, folder: Path) -> None:
        self.main = read_object(folder / "tokenizer_config.json")
        self.special = read_object(folder / "special_tokens_map.json")
        self.added = read_object(folder / "added_tokens.json")
        self.generation = read_object(folder / "generation_config.json")
        self.model = read_object(folder / "config.json")
        jinja = folder / "chat_template.jinja"
        legacy = read_object(folder / "chat_template.json")
        self.chat_template = jinja.read_text("utf-8") if jinja.is_file() else _template(self.main) or _template(legacy)

    def piece(self, role: str) -> str | None:
        """bos, eos or unk: the piece's text."""
        for source in (self.main, self.special):
            value = source.get(f"{role}_token")
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                return value
        return None

    def ends(self, special: Callable[[int], bool]) -> list[int]:
        """Ids that end an answer. generation_config.json decides where it names some, as in transformers; config.json adds
        special pieces only then, since its default of 2 is any word in somebody's own vocabulary."""
        decided, others = (id_list(source.get("eos_token_id")) for source in (self.generation, self.model))
        return decided + [i for i in others if i not in decided and (not decided or special(i))]

    def added_tokens(self) -> Iterator[Json]:
        """Added tokens outside tokenizer.json, each with id and content."""
        decoder = self.main.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            for key, value in decoder.items():
                if isinstance(value, dict) and str(key).isdecimal():
                    yield {**value, "id": int(key)}
        for content, token in self.added.items():
            yield {"id": token, "content": content, "special": True}


def _template(source: Json) -> str | None:
    template = source.get("chat_template")
    if isinstance(template, list):  # several, each with a name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def id_list(value: object) -> list[int]:
    """eos_token_id as files write it: a number, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


class _Table:
    """A vocabulary under construction: pieces and kinds by id, holes as unused pieces."""

    def __init__(self, where: Path, ids: Mapping[str, int], byte_pieces: bool) -> None:
        self.where = where
        self.pieces: list[str] = []
        self.kinds = bytearray()
        self.strips: dict[int, tuple[bool, bool]] = {}
        self.normalized: set[int] = set()
        limit = 2 * len(ids) + 100_000
        for piece, token in ids.items():
            if not isinstance(token, int) or not 0 <= token < limit:
                raise ValueError(f"{where}: piece {piece!r} has the id {token!r}, out of range for {len(ids)} pieces")
            self.put(token, piece, Kind.BYTE if byte_pieces and piece in _BYTE_PIECES else Kind.NORMAL)

    def put(self, token: int, piece: str, kind: Kind) -> None:
        for i in range(len(self.pieces), token + 1):
            self.pieces.append(f"[HOLE_{i}]")
            self.kinds.append(Kind.UNUSED)
        self.pieces[token], self.kinds[token] = piece, kind

    def add(self, added: Json) -> None:
        """An added token as Hugging Face files describe one."""
        token, content = added.get("id"), added.get("content")
        if not isinstance(token, int) or not isinstance(content, str) or not 0 <= token <= len(self.pieces) + 100_000:
            raise ValueError(f"{self.where}: an added token needs an id and a content, not {added!r:.200}")
        if added.get("single_word"):
            raise ValueError(f"{self.where}: added token {content!r} is single_word, which gangpao does not do")
        self.put(token, content, Kind.CONTROL if added.get("special") else Kind.USER_DEFINED)
        if added.get("lstrip") or added.get("rstrip"):
            self.strips[token] = (bool(added.get("lstrip")), bool(added.get("rstrip")))
        elif added.get("normalized") and not added.get("special"):
            self.normalized.add(token)

    def _is_special(self, token: int) -> bool:
        return token < len(self.kinds) and self.kinds[token] in (Kind.CONTROL, Kind.USER_DEFINED)

    def vocabulary(
        self, config: _Config, *, byte_level: bool, scheme: SpacePrefix, merged: Iterable[str] = ()
    ) -> Vocabulary:
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        bos, eos, unk = (config.piece(role) for role in ("bos", "eos", "unk"))
        if unk in ids:
            self.kinds[ids[unk]] = Kind.UNKNOWN
        return Vocabulary(
            self.pieces,
            self.kinds,
            byte_level,
            bos_id=ids.get(bos or ""),
            eos_id=ids.get(eos or ""),
            unk_id=ids.get(unk or ""),
            adds_bos=bool(config.main.get("add_bos_token")) and bos in ids,
            space_prefix=scheme,
            merged=frozenset(merged),
            strips=self.strips,
            normalized=frozenset(self.normalized),
            ends=[i for i in config.ends(self._is_special) if i < len(self.pieces)],
        )


def _from_tokenizer_json(path: Path, config: _Config) -> Loaded:
    data = read_object(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise ValueError(f"{path}: the model is {kind!r}; gangpao reads BPE")
    ids, merges = model.get("vocab"), model.get("merges")
    if not isinstance(ids, dict) or not isinstance(merges, list):
        raise ValueError(f"{path}: model needs a vocab object and a list of merges")
    table = _Table(path, ids, byte_pieces=bool(model.get("byte_fallback")))
    added = data.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        table.add(token if isinstance(token, dict) else {})
    steps = steps_of(data.get("normalizer"))
    if not steps:  # they are found in the text as it is
        table.normalized.clear()
    pairs = [pair for pair in map(merge_pair, merges) if pair is not None]
    byte_level = _uses(data.get("pre_tokenizer"), "ByteLevel") or _uses(data.get("decoder"), "ByteLevel")
    scheme = _space_scheme(data)
    vocabulary = table.vocabulary(config, byte_level=byte_level, scheme=scheme, merged=[a + b for a, b in pairs])
    if "add_bos_token" not in config.main and vocabulary.bos_id is not None:
        vocabulary.adds_bos = _starts_with(data.get("post_processor"), vocabulary.pieces[vocabulary.bos_id])
    control = {vocabulary.pieces[i] for i in vocabulary.control_ids} - {model.get("unk_token")}
    ordinary = {piece: i for piece, i in ids.items() if piece not in control}
    kept = [[a, b] for a, b in pairs if not control & {a, b, a + b}]
    bare: Json = {"added_tokens": [], "post_processor": None, "decoder": None, "truncation": None, "padding": None}
    data = {**data, **bare, "model": {**model, "vocab": ordinary, "merges": kept}}
    if vocabulary.normalized:
        return Loaded(vocabulary, *_normalizing(path, data, vocabulary, steps), config.chat_template)
    rest = _library(path, {**data, **_without_prefix(data)})
    if scheme == "never":
        first: Merger = rest
    elif [step.get("type") for step in steps] == ["Prepend", "Replace"]:
        first = SpacePrefixed(rest)  # the same thing, without building the library's tables twice
    else:
        first = _library(path, data)
    return Loaded(vocabulary, rest, first, config.chat_template)


def _normalizing(path: Path, data: Json, vocabulary: Vocabulary, steps: Sequence[Step]) -> tuple[Merger, Merger]:
    """The mergers for what continues a text and for what begins one, where added tokens are looked for after normalizing."""
    bare: Json = {**data, "normalizer": None}
    rest = _library(path, {**bare, "pre_tokenizer": _without_prefix(data)["pre_tokenizer"]})
    first = _library(path, bare) if _uses(data.get("pre_tokenizer"), "Metaspace") else rest
    added = normal_pieces(steps, {vocabulary.pieces[i]: i for i in vocabulary.normalized})
    return normalized(without_prefix(steps), rest, added), normalized(steps, first, added)


def _library(path: Path, data: Json) -> LibraryMerger:
    with needed("tokenizers", _PURPOSE):
        from tokenizers import Tokenizer as Library

    try:
        return LibraryMerger(Library.from_str(json.dumps(data)))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: the tokenizers library does not take it: {error}") from error


def merge_pair(merge: object) -> tuple[str, str] | None:
    """A merge, written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and isinstance(parts[0], str) and isinstance(parts[1], str):
        return parts[0], parts[1]
    return None


def _steps(part: object) -> list[Json]:
    """A normalizer, pre-tokenizer, decoder or post-processor as a flat list of steps."""
    if not isinstance(part, dict):
        return []
    inner = next((part[k] for k in ("normalizers", "pretokenizers", "decoders", "processors") if k in part), None)
    if isinstance(inner, list):
        return [step for item in inner for step in _steps(item)]
    return [part]


def _uses(part: object, name: str) -> bool:
    return any(step.get("type") == name for step in _steps(part))


def _space_scheme(data: Json) -> SpacePrefix:
    if _uses(data.get("normalizer"), "Prepend"):
        return "always"
    for step in _steps(data.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            return "first" if scheme == "first" else "never" if scheme == "never" else "always"
    return "never"


def _without_prefix(data: Json) -> Json:
    """The normalizer and pre-tokenizer for text that continues another one."""
    kept = [step for step in _steps(data.get("normalizer")) if step.get("type") != "Prepend"]
    cuts = [
        {**step, "prepend_scheme": "never", "add_prefix_space": False} if step.get("type") == "Metaspace" else step
        for step in _steps(data.get("pre_tokenizer"))
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts} if cuts else None,
    }


def _starts_with(post_processor: object, bos: str) -> bool:
    for step in _steps(post_processor):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            special = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
            if isinstance(special, dict) and special.get("id") == bos:
                return True
    return False


def _from_vocab_and_merges(folder: Path, config: _Config) -> Loaded:
    with needed("tokenizers", _PURPOSE):
        from tokenizers import Tokenizer as Library
        from tokenizers import models, normalizers

    path = folder / "vocab.json"
    listed = _read_json(path)
    if isinstance(listed, list):  # pieces by id instead of ids by piece
        listed = {piece: i for i, piece in enumerate(listed) if isinstance(piece, str)}
    if not isinstance(listed, dict) or "<0x00>" not in listed:
        raise ValueError(f"{path}: not a SentencePiece vocabulary with byte pieces; gangpao needs its tokenizer.json")
    table = _Table(path, listed, byte_pieces=True)
    config.main = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, **config.main}
    for piece in ("<s>", "</s>"):
        if piece in listed:
            table.put(listed[piece], piece, Kind.CONTROL)
    for token in config.added_tokens():
        table.add(token)
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    pairs = [pair for pair in map(merge_pair, lines) if pair is not None and not pair[0].startswith("#version")]
    vocabulary = table.vocabulary(config, byte_level=False, scheme="always", merged=[a + b for a, b in pairs])
    if "unk_token" not in config.main or vocabulary.unk_id is None:
        raise ValueError(f"{path}: there is no piece for unknown text (<unk>)")
    unk = vocabulary.pieces[vocabulary.unk_id]
    control = {vocabulary.pieces[i] for i in vocabulary.control_ids} - {unk}
    ordinary = {piece: i for piece, i in listed.items() if piece not in control}
    kept = [(a, b) for a, b in pairs if a in ordinary and b in ordinary and a + b in ordinary]
    library = Library(models.BPE(vocab=ordinary, merges=kept, unk_token=unk, fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Replace(" ", "\u2581")
    merge = LibraryMerger(library)
    return Loaded(vocabulary, merge, SpacePrefixed(merge), config.chat_template)


def _from_tokenizer_model(path: Path, config: _Config) -> Loaded:
    pieces: dict[str, int] = {}
    kinds: list[Kind] = []
    scores: list[float] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    for number, value in protobuf_fields(path, path.read_bytes()):
        if number == 1:
            piece = dict(protobuf_fields(path, value))
            text, score, code = piece.get(1), piece.get(2, b"\0\0\0\0"), piece.get(3, 1)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(code, int):
                raise ValueError(f"{path}: piece {len(kinds)} is damaged")
            kind = Kind(code) if code <= max(Kind) else Kind.UNDEFINED
            written = text.decode("utf-8", "replace")
            pieces[written.replace("\u2581", " ") if kind == Kind.USER_DEFINED else written] = len(kinds)
            kinds.append(kind)
            scores.append(struct.unpack("<f", score)[0])
        elif number == 2:
            trainer = dict(protobuf_fields(path, value))
        elif number == 3:
            normalizer = dict(protobuf_fields(path, value))
    if trainer.get(3, 1) != 2:
        raise ValueError(f"{path}: not a BPE model; gangpao reads SentencePiece BPE")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise ValueError(f"{path}: it normalises text (precompiled_charsmap or extra spaces); use a tokenizer.json")
    if len(pieces) != len(kinds):
        raise ValueError(f"{path}: a piece occurs twice")
    table = _Table(path, pieces, byte_pieces=False)
    table.kinds[:] = bytearray(kinds)
    defaults = zip(("unk", "bos", "eos"), (40, 41, 42), strict=True)  # ids 0, 1, 2 unless the trainer says otherwise
    for default, (role, number) in enumerate(defaults):
        token = trainer.get(number, default)
        if isinstance(token, int) and token < len(table.pieces):
            config.main.setdefault(f"{role}_token", table.pieces[token])
    config.main.setdefault("add_bos_token", True)
    for added in config.added_tokens():
        table.add(added)
    scheme: SpacePrefix = "first" if normalizer.get(3, 1) else "never"
    vocabulary = table.vocabulary(config, byte_level=False, scheme=scheme)
    merge: Merger = ScoreMerger(vocabulary, scores + [0.0] * (len(table.pieces) - len(scores)))
    first = merge if scheme == "never" else SpacePrefixed(merge)
    return Loaded(vocabulary, merge, first, config.chat_template)


def protobuf_fields(path: Path, data: object, what: str = "SentencePiece model") -> Iterator[tuple[int, object]]:
    """The (number, value) fields of a protocol buffer message: integers, and bytes for everything else. what: it should be."""
    if not isinstance(data, bytes):
        raise ValueError(f"{path}: a message was expected where there is a number")
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while shift < 70:
            if at >= len(data):
                break
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError(f"{path}: no {what}, or cut short at byte {at}")

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(wire)
        size = varint() if wire == 2 else size
        if size is None or size > len(data) - at:
            raise ValueError(f"{path}: no {what}, or cut short at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error


def read_object(path: Path) -> Json:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value
