"""Tokenizers as GGUF metadata: the same ids on the other side, for every rule and for the real MiniCPM vocabularies."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from gangpao.text import normalizers as ours
from gangpao.text.export import PROBE, gguf_metadata, rule_name
from gangpao.text.pretokenizers import RULES, by_name
from gangpao.text.tokenizer import Tokenizer
from tests.text.corpus import lines
from tests.text.hf_folder import byte_level, save, sentencepiece_like

ROOT = Path(__file__).resolve().parents[2]


def folder(name):
    path = Path(os.environ.get("GANGPAO_SHARED", ROOT.parent / "shared")) / "tokenizers" / name
    if not path.is_dir():
        pytest.skip(
            f"the tokenizer of {name} is not there: set GANGPAO_SHARED to the folder that holds tokenizers/{name}"
        )
    return path


def cutter(rule):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def cut(rule, text):
    return [piece for piece, _ in cutter(rule).pre_tokenize_str(text)]


def described(rule):
    """A tokenizer.json with this rule."""
    library = Library(models.BPE(vocab={"a": 0}, merges=[], ignore_merges=rule.whole_words))
    library.pre_tokenizer = cutter(rule)
    return json.loads(library.to_str())


@pytest.mark.parametrize(("rule", "names"), RULES.items(), ids=[names[0] for names in RULES.values()])
def test_the_rule_found_cuts_like_the_one_meant(rule, names):
    """Some rules differ in nothing but their name, so what counts is the cut: on other texts than the probe."""
    found = by_name(rule_name(Path("x"), described(rule)))
    assert found.whole_words == rule.whole_words
    texts = lines(400, seed=7)
    different = [text for text in texts if cut(found, text) != cut(rule, text)]
    assert different == [], names


def test_an_unknown_rule_is_refused():
    data = described(next(iter(RULES))) | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    with pytest.raises(ValueError, match="no GGUF pre-tokenizer cuts text as"):
        rule_name(Path("x"), data)
    with pytest.raises(ValueError, match="no GGUF pre-tokenizer"):
        rule_name(Path("x"), data | {"pre_tokenizer": None})


@pytest.mark.parametrize("name", ["minicpm-2b", "minicpm3"])
def test_the_real_vocabularies_survive(name):
    here = Tokenizer.from_dir(folder(name))
    there = Tokenizer.from_gguf(gguf_metadata(folder(name)))
    assert (there.bos_id, there.eos_id, there.adds_bos) == (here.bos_id, here.eos_id, here.adds_bos)
    assert there.vocab_size == here.vocab_size
    v = here.vocabulary
    unmade = (
        []
        if name == "minicpm3"
        else [p for p, k in zip(v.pieces, v.kinds, strict=True) if k == 1 and len(p) > 1 and p not in v.merged]
    )
    texts = [text for text in [PROBE, *lines(300)] if not any(piece in text for piece in unmade)]
    assert len(texts) > 200
    assert [text for text in texts if here.encode(text) != there.encode(text)] == []


HARD = [
    "Hello World", "ｈｅｌｌｏ ＷＯＲＬＤ", "he\u0301llo cafe\u0301", "  hello \t\n", "hello", " ", "", "ﬁne ① ½ Ⅷ",
    "a``b''c", "你好！ hello",
    "Ünïcödé NAÏVE", "x\u0323\u0307 \u1e69", "<s>Hello </s> hello<s>", "가각 \u1100\u1161", *lines(60, seed=3),
]  # fmt: skip
NORMALIZERS = {
    "nfc": [normalizers.NFC()],
    "nfd": [normalizers.NFD()],
    "nfkc": [normalizers.NFKC()],
    "nfkd": [normalizers.NFKD()],
    "lowercase": [normalizers.Lowercase()],
    "accents": [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()],
    "strip": [normalizers.Strip()],
    "strip-left": [normalizers.Strip(left=True, right=False)],
    "replace": [normalizers.Replace("``", '"'), normalizers.Replace("e", "")],
    "nmt": [normalizers.Nmt()],
    "bert": [normalizers.BertNormalizer()],
}


def both(folder, texts=HARD):
    """The library, and the tokenizer of our file, after both were seen to give the same ids."""
    library = Library.from_file(str(folder / "tokenizer.json"))
    there = Tokenizer.from_gguf(gguf_metadata(folder))
    different = [
        (text, expected, got)
        for text in texts
        if (expected := library.encode(text, add_special_tokens=False).ids)
        != (got := there.encode(text, parse_special=True))
    ]
    assert different == []
    return library, there


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_go_over(name, tmp_path):
    library, there = both(save(tmp_path, byte_level(normalizers.Sequence(NORMALIZERS[name]))))
    bare = byte_level()
    assert any(library.encode(text).ids != bare.encode(text).ids for text in HARD), "this normalizer does nothing here"
    here = Tokenizer.from_dir(tmp_path)
    assert [text for text in HARD if here.encode(text) != there.encode(text)] == []


@pytest.mark.parametrize("name", ["nfc", "lowercase", "strip", "accents", "replace"])
def test_added_tokens_are_looked_for_after_normalizing_where_they_are(name, tmp_path):
    added = ["<Tool>", "he", AddedToken("<Raw>", normalized=False), AddedToken("<é>", normalized=True)]
    library = byte_level(normalizers.Sequence(NORMALIZERS[name]), added)
    texts = [f"{a}{space}{token}{space}{a}" for a in ("", "hello", "ÉE") for space in ("", " ", "\n") for token in
             ("<Tool>", "<TOOL>", "<tool>", "<Raw>", "<raw>", "<é>", "<e\u0301>", "<É>")]  # fmt: skip
    _, there = both(save(tmp_path, library), [*texts, *HARD])
    here = Tokenizer.from_dir(tmp_path)
    assert [text for text in texts if here.encode(text) != there.encode(text)] == []
    assert here.decode(here.encode("hello <Raw>he")) == there.decode(there.encode("hello <Raw>he"))


def test_added_tokens_of_a_sentencepiece_vocabulary_are_found_as_the_library_finds_them(tmp_path):
    library = sentencepiece_like(added=["<Tool>", AddedToken("<Raw>", normalized=False)])
    ends = ("", "hello", " hello")
    texts = [f"hello{space}{token}{end}" for space in ("", " ") for token in ("<Tool>", "<Raw>") for end in ends]
    both(save(tmp_path, library), [*texts, *(text.removeprefix("hello") for text in texts)])


def test_a_prefix_of_the_normalizer_goes_over(tmp_path):
    both(save(tmp_path, byte_level(normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("hell")]))))


@pytest.mark.parametrize("name", ["nfkc", "lowercase", "replace"])
def test_normalizers_before_sentencepieces_own_go_over(name, tmp_path):
    texts = ["hello world", "ｈｅｌｌｏ ＷＯＲＬＤ hellO", "你好 <s> hello</s>hello  world"]
    _, there = both(save(tmp_path, sentencepiece_like(NORMALIZERS[name])), texts)
    assert there.vocabulary.space_prefix == "always"


@pytest.mark.parametrize(
    ("normalizer", "says"),
    [
        (normalizers.Replace(Regex(" +"), " "), "Replace has a regular expression"),
        (normalizers.Sequence([normalizers.ByteLevel()]), "'ByteLevel' is not one we apply"),
        (normalizers.Replace("a", "b" * 100), "makes a text 64 times as long"),
    ],
)
def test_normalizers_that_a_file_cannot_carry_are_refused(normalizer, says, tmp_path):
    with pytest.raises(ValueError, match=rf"tokenizer.json: .*{says}.*other ids"):
        gguf_metadata(save(tmp_path, byte_level(normalizer)))


@pytest.mark.parametrize(
    "value",
    [
        b"[]", "{", "{}", "[1]", '[{"type": "Exec"}]', '[{"type": "Strip"}]', '[{"type": "Prepend", "prepend": 1}]',
        '[{"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}]',
        '[{"type": "Replace", "pattern": {"String": ""}, "content": "a"}]',
        '[{"type": "Replace", "pattern": {"String": "a", "Regex": "a"}, "content": ""}]',
        json.dumps([{"type": "NFC"}] * 33),
        json.dumps([{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 4),
        json.dumps([{"type": "Prepend", "prepend": "a" * 257}]),
    ],
)  # fmt: skip
def test_a_hostile_normalizer_is_refused(value):
    with pytest.raises(ValueError, match="normalizer"):
        ours.read(value)


def test_added_tokens_take_white_space_as_they_did(tmp_path):
    sides = {"<left>": (True, False), "<right>": (False, True), "<both>": (True, True), "<plain>": (False, False)}
    added = [AddedToken(content, lstrip=left, rstrip=right) for content, (left, right) in sides.items()]
    folder = save(tmp_path, byte_level(added=added))
    spaces = (" ", "\t\n ", "\u3000", "\x1c", "\x85\u2028", "")
    texts = [f"hello{space}{token}{space}world {token}" for space in spaces for token in sides]
    notes = []
    gguf_metadata(folder, notes.append)
    assert len(notes) == 2
    both(folder, texts)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [1, 2]}, None, {1, 2}),
        ({"eos_token_id": [2, 3, 4, 1]}, None, {1, 2, 3, 4}),
        ({"eos_token_id": [2, 3, 4, 10, 11]}, None, {1, 2, 3, 4, 10, 11}),
        (None, {"eos_token_id": [1, 2]}, {1, 2}),
        (None, {"eos_token_id": 2}, {1, 2}),
        ({"temperature": 1.0}, {"eos_token_id": [1, 3]}, {1, 3}),
        ({"eos_token_id": 1}, {"eos_token_id": [3, 20]}, {1, 3}),  # 20 is an ordinary piece, and not asked for
        (None, None, {1}),
    ],
)
def test_every_end_goes_over(generation, config, ends, tmp_path):
    folder = save(tmp_path, byte_level(), generation=generation, **({"config__json": config} if config else {}))
    assert Tokenizer.from_dir(folder).end_ids == ends
    metadata = gguf_metadata(folder)
    assert Tokenizer.from_gguf(metadata).end_ids == ends
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    named = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")} - {None}
    assert len(named) == min(3, len(ends)), "llama.cpp reads these"


def test_sampling_defaults_go_over(tmp_path):
    generation = {
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1,
        "num_beams": 4, "max_new_tokens": 2048, "no_repeat_ngram_size": 0,
    }  # fmt: skip
    notes = []
    metadata = gguf_metadata(save(tmp_path, byte_level(), generation=generation), notes.append)
    names = {"temp": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.1}
    assert {k: v for k, v in metadata.items() if "sampling" in k} == {
        f"general.sampling.{k}": v for k, v in names.items()
    }
    assert notes == ["generation_config.json: num_beams cannot be said in GGUF and are left out"]
    save(tmp_path, byte_level(), generation={"do_sample": False, "temperature": 0.6})
    assert gguf_metadata(tmp_path)["general.sampling.temp"] == 0.0
    save(tmp_path, byte_level(), generation={"top_p": "high"})
    with pytest.raises(ValueError, match=r"generation_config.json: top_p is 'high', it must be a number"):
        gguf_metadata(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>"), ("dropout", 0.1)]
)
def test_fields_of_the_model_that_change_ids_are_refused(field, value, tmp_path):
    folder = save(tmp_path, byte_level())
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"][field] = value
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"model.{field} is {value!r}, which GGUF cannot say"):
        gguf_metadata(folder)
