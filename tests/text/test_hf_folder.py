"""Tokenizers from Hugging Face folders equal the libraries the folders were made for."""

import json
import struct
from pathlib import Path

import pytest
import tokenizers

from gangpao.text.tokenizer import Tokenizer
from tests.text.corpus import lines

FIXTURES = Path(__file__).parent.parent / "fixtures" / "tokenizers"
LINES = 1_000


@pytest.fixture(scope="module")
def minicpm3(shared):
    return Tokenizer.from_dir(shared / "minicpm3")


@pytest.fixture(scope="module")
def minicpm_2b(shared):
    return Tokenizer.from_dir(shared / "minicpm-2b")


def test_minicpm3_equals_the_tokenizers_library(shared, minicpm3):
    reference = tokenizers.Tokenizer.from_file(str(shared / "minicpm3" / "tokenizer.json"))
    for text in lines(LINES):
        assert minicpm3.encode(text, parse_special=True) == reference.encode(text, add_special_tokens=False).ids
    assert minicpm3.encode("hi", add_bos=True) == reference.encode("hi").ids
    assert (minicpm3.bos_id, minicpm3.eos_id, minicpm3.adds_bos) == (1, 73440, True)
    assert minicpm3.end_ids == {2, 73440}
    assert "<|im_start|>" in minicpm3.chat_template


def test_minicpm3_without_tokenizer_json_equals_sentencepiece(shared, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = shared / "minicpm3" / "tokenizer.model"
    (tmp_path / "tokenizer.model").symlink_to(model)
    tokenizer = Tokenizer.from_dir(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in lines(LINES):
        if "\0" not in text:  # where the reference stops reading
            assert tokenizer.encode(text) == reference.encode(text)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocabulary.unk_id) == (1, 2, 0)


def test_minicpm_2b_equals_the_tokenizers_library(shared, minicpm_2b):
    pieces = json.loads((shared / "minicpm-2b" / "vocab.json").read_text("utf-8"))
    merges = (shared / "minicpm-2b" / "merges.txt").read_text("utf-8").split("\n")
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(line.split(" ")) for line in merges if line],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    reference = tokenizers.Tokenizer(model)
    reference.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    for text in lines(LINES):
        assert minicpm_2b.encode(text) == reference.encode(text).ids
    # The user and assistant marks as the published fine-tuning code writes them, in ids.
    assert minicpm_2b.encode("<用户>") == [1786, 4194, 95388]
    assert minicpm_2b.encode("<AI>") == [1786, 10850, 95388]
    assert (minicpm_2b.bos_id, minicpm_2b.eos_id, minicpm_2b.vocab_size) == (1, 2, 122_753)


def test_ids_of_a_small_sample(shared, minicpm3, minicpm_2b):
    sample = json.loads((FIXTURES / "minicpm_ids.json").read_text("utf-8"))
    for name, tokenizer in (("minicpm3", minicpm3), ("minicpm-2b", minicpm_2b)):
        for text, ids in zip(sample["texts"], sample[name], strict=True):
            assert tokenizer.encode(text) == ids
            assert tokenizer.decode(ids) == text


def trained(tmp_path, *, byte_level, scheme="always"):
    """A small tokenizer trained here, saved as a folder; returns it as the library loads it."""
    t = tokenizers
    tokenizer = t.Tokenizer(
        t.models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level, fuse_unk=True)
    )
    special = ["<unk>", "<s>", "</s>"]
    if byte_level:
        tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = t.pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = t.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        special += [f"<0x{b:02X}>" for b in range(256)]
        alphabet = []
    trainer = t.trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines(300, seed=5), trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    size = len(data["model"]["vocab"])
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] += [
        {"id": size, "content": "<tool>", "special": False, **common},
        {"id": size + 1, "content": "<|im_end|>", "special": True, **common, "rstrip": True},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return t.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(("byte_level", "scheme"), [(True, ""), (False, "always"), (False, "first"), (False, "never")])
def test_a_trained_tokenizer_equals_the_library_without_special_tokens_from_text(tmp_path, byte_level, scheme):
    reference = trained(tmp_path, byte_level=byte_level, scheme=scheme)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"})
    )
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.vocabulary.byte_level == byte_level
    assert tokenizer.eos_id == 2
    for text in lines(300, seed=6):
        mixed = text + "<tool>x<|im_end|>  y</s>" + text
        ids = tokenizer.encode(mixed, parse_special=True)
        assert ids == reference.encode(mixed, add_special_tokens=False).ids
        assert not tokenizer.control_ids & set(tokenizer.encode(mixed)) - {tokenizer.id_of("<unk>")}


def test_a_hole_in_the_ids_is_an_unused_piece(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 3}, "merges": []}}')
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.vocab_size == 4
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.encode("ab") == [0, 3]


def test_small_files_beside_a_tokenizer(tmp_path):
    trained(tmp_path, byte_level=True)
    config = {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True, "bos_token": "<s>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 10**9]}))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.chat_template == "D"
    assert tokenizer.adds_bos
    assert {2, 7} <= tokenizer.end_ids
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.from_dir(tmp_path).chat_template == "J"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer.json"),
        ({"tokenizer.json": "{"}, "no valid JSON"),
        ({"tokenizer.json": "[" * 100_000}, "no valid JSON"),
        ({"tokenizer.json": "[]"}, "JSON object"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "'Unigram'"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0}}}'}, "merges"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 1099511627776}, "merges": []}}'}, "out of range"),
        (
            {"tokenizer.json": '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}'},
            "added token",
        ),
        ({"tokenizer.json": '{"model": {"vocab": {"a": 0}, "merges": [], "dropout": "x"}}'}, "does not take it"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "tokenizer.json"),
        ({"vocab.json": '["<0x00>"]', "merges.txt": ""}, "<unk>"),
        ({"tokenizer.model": "\x08"}, "cut short"),
        ({"tokenizer.model": "\x0a\x05\x0a\x01a"}, "cut short"),
        ({"tokenizer.model": "\x0a\x03\x0a\x01a"}, "not a BPE model"),
        ({"tokenizer.model": "\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a\x12\x02\x18\x02"}, "normalises"),
        ({"tokenizer.model": "\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a\x12\x02\x18\x02\x1a\x02\x20\x00"}, "twice"),
    ],
)
def test_damaged_folders_are_refused_by_file(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content, "latin-1")
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_dir(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        Tokenizer.from_dir(tmp_path / "absent")


def test_python_files_and_auto_map_are_not_looked_at(tmp_path):
    trained(tmp_path, byte_level=True)
    canary = tmp_path / "canary"
    (tmp_path / "tokenization_x.py").write_text(f"open({str(canary)!r}, 'w')")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}})
    )
    Tokenizer.from_dir(tmp_path)
    assert not canary.exists()


def test_scores_of_a_sentencepiece_model_are_read_bit_by_bit(tmp_path):
    def field(number, wire, payload):
        return bytes([number << 3 | wire]) + payload

    def piece(text, score, kind):
        inner = (
            field(1, 2, bytes([len(text.encode())]) + text.encode())
            + field(2, 5, struct.pack("<f", score))
            + field(3, 0, bytes([kind]))
        )
        return field(1, 2, bytes([len(inner)]) + inner)

    model = piece("<unk>", 0, 2) + piece("a", -3, 1) + piece("b", -4, 1) + piece("ab", -1, 1) + piece("ba", -0.5, 1)
    model += field(2, 2, b"\x02\x18\x02") + field(3, 2, b"\x04\x18\x00\x20\x00")
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode("abab") == [1, 4, 2]  # "ba" scores higher than "ab"
