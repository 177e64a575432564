"""A Hugging Face tokenizer as the metadata keys of a GGUF file, for `Tokenizer.from_gguf` and llama.cpp.

Byte-level BPE goes over with its merges and the name of its pre-tokenizer. A GGUF file can only name a rule, so the name is
found by behaviour: the folder's own pre-tokenizer and each rule we know cut a text full of hard cases, and the first rule that
cuts it alike is taken. SentencePiece vocabularies go over with scores; where the folder only has merges, a piece's score is
minus the rank of the merge that makes it, so that the best score is the earliest merge. Pieces that no merge makes (flags,
which are two letters) then come out whole, as SentencePiece has them; Hugging Face's library falls back to bytes.

What GGUF has no word for (the normalizer, pieces that take white space, more than three ends) goes under keys of our own. What
it gives up: pre-tokenizers that no known name describes and normalizers with regular expressions are refused, not approximated.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from gangpao.text.hf_folder import merge_pair, protobuf_fields, read_object
from gangpao.text.normalizers import KEY as NORMALIZER
from gangpao.text.normalizers import PREFIX, SPACES, steps_of, written
from gangpao.text.pretokenizers import RULES, PreTokenizer
from gangpao.text.tokenizer import END_IDS, LSTRIP_IDS, NORMALIZED_IDS, RSTRIP_IDS, SPACE_PREFIX, Tokenizer
from gangpao.text.vocabulary import Vocabulary

_END_ROLES = ("eos", "eot", "eom")
# Fields of a BPE model that change ids and that no GGUF key says.
_REFUSED = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
# generation_config.json -> general.sampling, as llama.cpp names and types them.
_SAMPLING = (
    ("temperature", "temp", float), ("top_k", "top_k", int), ("top_p", "top_p", float), ("min_p", "min_p", float),
    ("repetition_penalty", "penalty_repeat", float),
)  # fmt: skip
# What else it may say about answers; shown when it is away from doing nothing.
_UNSAID = {
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "guidance_scale", "length_penalty", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "penalty_alpha",
    "sequence_bias", "stop_strings", "suppress_tokens", "top_h", "typical_p",
}  # fmt: skip
_UNREAD = {
    NORMALIZER: "the tokenizer normalizes text; gangpao does so from this file, llama.cpp and others do not: their ids differ "
    "where that changes a text",
    LSTRIP_IDS: "some added tokens take the white space before them; programs other than gangpao keep it",
    RSTRIP_IDS: "some added tokens take the white space after them; programs other than gangpao keep it",
    NORMALIZED_IDS: "some added tokens are looked for in normalized text; programs other than gangpao look in the text as it is",
    SPACE_PREFIX: "a space stands in front of a text, not after special tokens; llama.cpp puts one there too",
}

# Every kind of border that the rules of pretokenizers.py treat differently.
PROBE = (
    "Hello world's I'M we'Re DON'T it'LL 3.14159 12345678 1,000,000 2024年12月31日 你好，世界！我们说中文；（测试）"
    "  two  spaces   three\n\n\nlines\r\n\ttabs \t mixed\n  indented\n if (x==1){return a[0]->b;}//comment\n"
    "snake_case camelCase CONSTANT $100 50% #tag @name a@b.cn http://x.y/z?q=1&r=2 ... !!! ??? —— “引号” 「かな」カタカナ "
    "Ünïcödé naïve Привет мир Ελληνικά العربية עברית हिन्दी ไทย 한국어 🎉🎉 👨‍👩‍👧 ½ ² Ⅷ ①\u00a0nbsp\u3000全角　空格 "
    "x\u0301 ſ's it'sword we'llama    42   7\n !\nafter ?\r\nlines ;\n\n end   "
)


def gguf_metadata(folder: str | os.PathLike[str], on_note: Callable[[str], None] = lambda _: None) -> dict[str, object]:
    """tokenizer.ggml.*, keys of our own, the chat template and the sampling defaults of a folder.

    on_note gets a sentence for what other programs will not read, or what was left out. Raises ValueError when the folder's
    tokenizer has no GGUF form.
    """
    path = Path(folder)
    data = read_object(path / "tokenizer.json")
    _refuse_fields(path / "tokenizer.json", data.get("model"))
    tokenizer = Tokenizer.from_dir(path)
    vocabulary = tokenizer.vocabulary
    out: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2" if vocabulary.byte_level else "llama",
        "tokenizer.ggml.tokens": list(vocabulary.pieces),
        "tokenizer.ggml.token_type": [int(k) for k in vocabulary.kinds],
        "tokenizer.ggml.add_bos_token": vocabulary.adds_bos,
    }
    out |= _roles(vocabulary)
    if vocabulary.byte_level:
        out |= _byte_level(path, data)
    else:
        out["tokenizer.ggml.scores"] = _scores(path, vocabulary)
        out["tokenizer.ggml.add_space_prefix"] = vocabulary.space_prefix != "never"
        out["tokenizer.ggml.pre"] = "default"
    out |= _ours(path, data, vocabulary)
    if tokenizer.chat_template:
        out["tokenizer.chat_template"] = tokenizer.chat_template
    elif read_object(path / "tokenizer_config.json").get("chat_template"):
        on_note("tokenizer_config.json has chat templates, but none with the name default; the file has none")
    ends = out.get(END_IDS, [])
    assert isinstance(ends, list)
    if len(ends) > len(_END_ROLES):
        on_note(
            f"{len(ends)} tokens end an answer; llama.cpp reads {len(_END_ROLES)} of them ({', '.join(_END_ROLES)})"
        )
    for key, sentence in _UNREAD.items():
        if key in out:
            on_note(sentence)
    return out | sampling(path, on_note)


def _refuse_fields(where: Path, model: object) -> None:
    for field in _REFUSED:
        if isinstance(model, dict) and model.get(field):
            raise ValueError(f"{where}: model.{field} is {model[field]!r:.40}, which GGUF cannot say")


def _roles(vocabulary: Vocabulary) -> dict[str, object]:
    """Special ids. Ends past the first go where llama.cpp looks for some, and all of them under a key of our own."""
    ends = list(dict.fromkeys(i for i in (vocabulary.eos_id, *vocabulary.ends) if i is not None))
    roles = {"bos": vocabulary.bos_id, "unknown": vocabulary.unk_id}
    roles |= dict(zip(_END_ROLES, ends, strict=False))
    out: dict[str, object] = {f"tokenizer.ggml.{name}_token_id": i for name, i in roles.items() if i is not None}
    return out | ({END_IDS: ends} if ends else {})


def _byte_level(path: Path, data: Mapping[str, object]) -> dict[str, object]:
    model = data["model"]
    assert isinstance(model, dict)  # the folder was loaded already
    pairs = [pair for pair in map(merge_pair, model["merges"]) if pair is not None]
    return {"tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs], "tokenizer.ggml.pre": rule_name(path, data)}


def _ours(path: Path, data: Mapping[str, object], vocabulary: Vocabulary) -> dict[str, object]:
    """What only our reader understands. Raises ValueError for a normalizer that a file cannot carry."""
    steps = steps_of(data.get("normalizer"))
    if not vocabulary.byte_level:  # add_space_prefix says the prefix, and every reader writes U+2581 for a space
        steps = [step for step in steps if step not in (PREFIX, SPACES)]
    out: dict[str, object] = {}
    if steps:
        try:
            out[NORMALIZER] = written(steps)
        except ValueError as error:
            raise ValueError(f"{path / 'tokenizer.json'}: {error}, so an export would give other ids") from error
    if vocabulary.normalized:
        out[NORMALIZED_IDS] = sorted(vocabulary.normalized)
    for key, side in ((LSTRIP_IDS, 0), (RSTRIP_IDS, 1)):
        if ids := sorted(i for i, strips in vocabulary.strips.items() if strips[side]):
            out[key] = ids
    return out | ({SPACE_PREFIX: "first"} if vocabulary.space_prefix == "first" else {})


def sampling(folder: Path, on_note: Callable[[str], None]) -> dict[str, object]:
    """general.sampling.* of generation_config.json. Raises ValueError for a value that is no number."""
    where = folder / "generation_config.json"
    config = read_object(where)
    out: dict[str, object] = {}
    for name, key, kind in _SAMPLING:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where}: {name} is {value!r:.40}, it must be a number")
        out[f"general.sampling.{key}"] = kind(value)
    if config.get("do_sample") is False:  # said, not only left out: the answer is the most likely one
        out["general.sampling.temp"] = 0.0
    if left := sorted(k for k, v in config.items() if k in _UNSAID and v not in (None, False, 0, 1, 1.0, [], {})):
        on_note(f"{where.name}: {', '.join(left)} cannot be said in GGUF and are left out")
    return out


def rule_name(path: Path, data: Mapping[str, object]) -> str:
    """The name of the rule that cuts PROBE as the folder's pre-tokenizer does."""
    from tokenizers import Tokenizer as Library

    bare = {**data, "normalizer": None, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    cutter = Library.from_str(json.dumps(bare)).pre_tokenizer
    wanted = [piece for piece, _ in cutter.pre_tokenize_str(PROBE)] if cutter is not None else [PROBE]
    whole = bool(isinstance(model := data.get("model"), dict) and model.get("ignore_merges"))
    for rule, names in RULES.items():
        if rule.whole_words == whole and _cut(rule) == wanted:
            return names[0]
    raise ValueError(
        f"{path}: no GGUF pre-tokenizer cuts text as this tokenizer.json does, so an export would give other ids. "
        "Train the tokenizer with a known rule (qwen2, llama3, gpt-2)"
    )


def _cut(rule: PreTokenizer) -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns]
    steps = [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(PROBE)]


def _scores(path: Path, vocabulary: Vocabulary) -> list[float]:
    """Scores by id: those of tokenizer.model, else minus the rank of the merge that makes a piece."""
    scores = [0.0] * len(vocabulary.pieces)
    model = path / "tokenizer.model"
    if model.is_file():
        pieces = (
            dict(protobuf_fields(model, value))
            for number, value in protobuf_fields(model, model.read_bytes())
            if number == 1
        )
        for i, piece in enumerate(pieces):
            raw = piece.get(2, b"\0\0\0\0")
            assert isinstance(raw, bytes)  # the folder was loaded already
            scores[i] = struct.unpack("<f", raw)[0]
        return scores
    for rank, (a, b) in enumerate(_merges(path)):
        token = vocabulary.ids.get(a + b)
        if token is not None and scores[token] == 0.0:
            scores[token] = -float(rank + 1)
    return scores


def _merges(path: Path) -> list[tuple[str, str]]:
    if (path / "tokenizer.json").is_file():
        lines = json.loads((path / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    else:
        lines = [x for x in (path / "merges.txt").read_text("utf-8").split("\n") if not x.startswith("#version")]
    return [pair for pair in map(merge_pair, lines) if pair is not None]
