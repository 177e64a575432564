"""A GGUF file's tokenizer as the files of a Hugging Face folder, so that a model made from a file is a folder like any other.

Byte-level BPE only: vocabulary and merges go over as they are, and the rule that tokenizer.ggml.pre names becomes the
pre-tokenizer. Control and user-defined pieces become added tokens. What a file does not say (a post-processor, a normalizer
under a name of others) is not invented.

What it gives up: SentencePiece vocabularies, whose scores are no merges.
"""

import json
from collections.abc import Mapping

from gangpao.text.hf_folder import merge_pair
from gangpao.text.normalizers import KEY as NORMALIZER
from gangpao.text.pretokenizers import PreTokenizer, by_name
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import Kind, Vocabulary

Json = dict[str, object]
_ADDED = (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)


def hugging_face_files(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and, where there is one, chat_template.jinja, by name.

    Raises ValueError where the file's tokenizer has no such form, or we cannot write it.
    """
    tokenizer = Tokenizer.from_gguf(metadata)
    vocabulary = tokenizer.vocabulary
    if not vocabulary.byte_level:
        raise ValueError(
            "the tokenizer of this GGUF file is a SentencePiece vocabulary with scores, of which no tokenizer.json is made: take "
            "the model's Hugging Face folder"
        )
    if NORMALIZER in metadata:
        raise ValueError("the tokenizer of this GGUF file normalizes text: take the model's Hugging Face folder")
    files: dict[str, object] = {
        "tokenizer.json": _tokenizer(metadata, vocabulary),
        "tokenizer_config.json": _config(vocabulary),
        "generation_config.json": {"bos_token_id": vocabulary.bos_id, "eos_token_id": _ends(vocabulary)},
    }
    out = {
        name: (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")
        for name, value in files.items()
    }
    if tokenizer.chat_template:
        out["chat_template.jinja"] = tokenizer.chat_template.encode()
    return out


def _ends(vocabulary: Vocabulary) -> list[int]:
    """All that end an answer, the file's own end first."""
    first = [i for i in (vocabulary.eos_id,) if i is not None]
    return first + sorted(vocabulary.end_ids - set(first))


def _tokenizer(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Json:
    lines = metadata.get("tokenizer.ggml.merges")
    pairs = [pair for line in lines if (pair := merge_pair(line))] if isinstance(lines, list | tuple) else []
    name = metadata.get("tokenizer.ggml.pre", "default")
    rule = by_name(name if isinstance(name, str) else "default")
    ids = {
        piece: i for piece, i in vocabulary.ids.items() if vocabulary.kinds[i] != Kind.UNUSED
    }  # rows that fill the embedding up
    known = [[a, b] for a, b in pairs if a in ids and b in ids and a + b in ids]
    special = {i for i, kind in enumerate(vocabulary.kinds) if kind in _ADDED}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocabulary, i) for i in sorted(special)],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(rule),
        "post_processor": _post_processor(vocabulary),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": rule.whole_words,
            "vocab": ids, "merges": known,
        },
    }  # fmt: skip


def _added(vocabulary: Vocabulary, token: int) -> Json:
    left, right = vocabulary.strips.get(token, (False, False))
    return {
        "id": token, "content": vocabulary.pieces[token], "single_word": False, "lstrip": left, "rstrip": right,
        "normalized": False, "special": vocabulary.kinds[token] != Kind.USER_DEFINED,
    }  # fmt: skip


def _byte_level() -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _pre_tokenizer(rule: PreTokenizer) -> Json:
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in rule.patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*cuts, _byte_level()]}


def _post_processor(vocabulary: Vocabulary) -> Json:
    """BOS in front of a text, where the model expects one."""
    if not vocabulary.adds_bos or vocabulary.bos_id is None:
        return _byte_level()
    bos = vocabulary.pieces[vocabulary.bos_id]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    sequences = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, sequences[0]],
        "pair": [first, sequences[0], {"SpecialToken": {"id": bos, "type_id": 1}}, sequences[1]],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos_id], "tokens": [bos]}},
    }


def _config(vocabulary: Vocabulary) -> Json:
    out: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": vocabulary.adds_bos}
    for role, token in (("bos", vocabulary.bos_id), ("eos", vocabulary.eos_id), ("unk", vocabulary.unk_id)):
        if token is not None:
            out[f"{role}_token"] = vocabulary.pieces[token]
    return out | {"clean_up_tokenization_spaces": False}
