"""A Hugging Face tokenizer as the metadata keys of a GGUF file, for `Tokenizer.from_gguf` and llama.cpp.

Byte-level BPE goes over with its merges and the name of its pre-tokenizer. A GGUF file can only name a rule, so the name is
found by behaviour: the folder's own pre-tokenizer and each rule we know cut a text full of hard cases, and the first rule that
cuts it alike is taken. SentencePiece vocabularies go over with scores; where the folder only has merges, a piece's score is
minus the rank of the merge that makes it, so that the best score is the earliest merge. Pieces that no merge makes (flags,
which are two letters) then come out whole, as SentencePiece has them; Hugging Face's library falls back to bytes.

What it gives up: pre-tokenizers that no known name describes are refused, not approximated.
"""

import json
import os
import struct
from pathlib import Path

from gangpao.text.folder import merge_pair, protobuf_fields
from gangpao.text.pretokenizers import RULES, PreTokenizer
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import Vocabulary

# Every kind of border that the rules of pretokenizers.py treat differently.
PROBE = (
    "Hello world's I'M we'Re DON'T it'LL 3.14159 12345678 1,000,000 2024年12月31日 你好，世界！我们说中文；（测试）"
    "  two  spaces   three\n\n\nlines\r\n\ttabs \t mixed\n  indented\n if (x==1){return a[0]->b;}//comment\n"
    "snake_case camelCase CONSTANT $100 50% #tag @name a@b.cn http://x.y/z?q=1&r=2 ... !!! ??? —— “引号” 「かな」カタカナ "
    "Ünïcödé naïve Привет мир Ελληνικά العربية עברית हिन्दी ไทย 한국어 🎉🎉 👨‍👩‍👧 ½ ² Ⅷ ①\u00a0nbsp\u3000全角　空格 "
    "x\u0301 ſ's it'sword we'llama    42   7\n !\nafter ?\r\nlines ;\n\n end   "
)


def gguf_metadata(folder: str | os.PathLike[str]) -> dict[str, object]:
    """tokenizer.ggml.* and the chat template. Raises ValueError when the folder's tokenizer has no GGUF form."""
    path = Path(folder)
    tokenizer = Tokenizer.from_dir(path)
    vocabulary = tokenizer.vocabulary
    out: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2" if vocabulary.byte_level else "llama",
        "tokenizer.ggml.tokens": list(vocabulary.pieces),
        "tokenizer.ggml.token_type": [int(k) for k in vocabulary.kinds],
        "tokenizer.ggml.add_bos_token": vocabulary.adds_bos,
    }
    roles = (("bos", vocabulary.bos_id), ("eos", vocabulary.eos_id), ("unknown", vocabulary.unk_id))
    out |= {f"tokenizer.ggml.{name}_token_id": token for name, token in roles if token is not None}
    if vocabulary.byte_level:
        data = json.loads((path / "tokenizer.json").read_text("utf-8"))
        pairs = [pair for pair in map(merge_pair, data["model"]["merges"]) if pair is not None]
        out |= {"tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs], "tokenizer.ggml.pre": rule_name(path, data)}
    else:
        out["tokenizer.ggml.scores"] = _scores(path, vocabulary)
        out["tokenizer.ggml.add_space_prefix"] = vocabulary.space_prefix != "never"
        out["tokenizer.ggml.pre"] = "default"
    if tokenizer.chat_template:
        out["tokenizer.chat_template"] = tokenizer.chat_template
    return out


def rule_name(path: Path, data: dict[str, object]) -> str:
    """The name of the rule that cuts PROBE as the folder's pre-tokenizer does."""
    from tokenizers import Tokenizer as Library

    bare = {**data, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
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
