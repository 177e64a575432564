"""Trained vocabularies: our Tokenizer and the library agree on every id, llama.cpp's rules hold, batches equal single texts."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gangpao.data.config import TrainTokenizer
from gangpao.data.sources.generated import texts as generated
from gangpao.data.tokens.bpe import CHAT_MARKS, CHAT_TEMPLATE, train
from gangpao.data.tokens.encode import Encoder
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("GANGPAO_SHARED", ROOT.parent / "shared"))

HARD = [
    "", " ", "\n\n \t\n", "Hello world! It's 12345 o'clock, isn't it?", "你好，世界！今天是2024年10月5日。",
    "混合mixed文本text123数字",
    "def f(x):\n    return x[0] + 1  # 注释\n", "</s><s><|im_start|>user<|im_end|>", "a</s>b", "<s", "ſ's 'S 'LL",
    "é e\u0301 ﬁ Å",
    "👨\u200d👩\u200d👧 🇨🇳", "\u3000全角　空格", "x" * 3000, "字" * 2000, "\x00\x01\x7f", "  leading and trailing  ", "١٢٣ Ⅷ ½",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "t"
    documents = [*generated("text", 600, 0), *generated("arithmetic", 200, 0)] * 2
    assert train(documents, TrainTokenizer(vocab_size=900, special=("<|think|>",)), path) == 900
    return path


def library(folder):
    return pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_our_tokenizer_gives_the_library_s_ids(folder):
    """On texts without special pieces the plain library, on texts with them the library told not to look for them."""
    tokenizer, peer = Tokenizer.from_dir(folder), library(folder)
    peer.encode_special_tokens = True
    for text in [*HARD, *generated("text", 50, 9)]:
        assert tokenizer.encode(text) == peer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == peer.get_vocab_size() == 900
    assert tokenizer.encode("x", add_bos=True) == peer.encode("x").ids


def test_special_pieces_are_the_first_and_text_cannot_spell_them(folder):
    tokenizer = Tokenizer.from_dir(folder)
    assert [tokenizer.id_of(p) for p in ("<s>", "</s>", *CHAT_MARKS, "<|think|>")] == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (0, 1, True)
    assert tokenizer.end_ids == {1, 3}
    assert tokenizer.control_ids == {0, 1, 2, 3, 4}
    assert min(tokenizer.encode("".join(HARD))) > 4
    assert tokenizer.encode("</s>", parse_special=True) == [1]


def test_digits_stand_alone_and_every_byte_has_a_piece(folder):
    tokenizer = Tokenizer.from_dir(folder)
    assert len(tokenizer.encode("2024")) == 4
    mixed = [p for p in tokenizer.vocabulary.pieces[5:] if re.search(r"[0-9]", p) and len(p) > 1]
    assert mixed == []
    for byte in range(256):
        assert any(tokenizer.token_bytes(i) == bytes([byte]) for i in range(5, 261)), byte


def test_the_pre_tokenizer_is_the_one_gguf_calls_qwen2(folder):
    """The same pieces and merges through a GGUF file's metadata give the same ids."""
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = data["model"]["vocab"] | {t["content"]: t["id"] for t in data["added_tokens"]}
    pieces = sorted(ids, key=ids.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    special = {t["content"] for t in data["added_tokens"]}
    name = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["ggml_pre"]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if p in special else 1 for p in pieces], "tokenizer.ggml.merges": merges,
    }  # fmt: skip
    ours, gguf = Tokenizer.from_dir(folder), Tokenizer.from_gguf(metadata)
    for text in [*HARD, *generated("text", 50, 3)]:
        assert ours.encode(text) == gguf.encode(text)


def test_the_template_is_chatml(folder):
    tokenizer = Tokenizer.from_dir(folder)
    template = ChatTemplate.for_model(tokenizer.chat_template, tokenizer=tokenizer)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert template.name == "chatml"
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2 <|im_end|>"}]
    ids, mask = Encoder(folder).chat(messages)
    assert (ids, mask) == template.encode_with_mask(tokenizer, messages)
    learned = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(learned, keep_special=True) == "2 <|im_end|><|im_end|>"
    assert ids[0] == 0
    assert ids.count(3) == 2, "the typed mark is text"


def test_training_is_the_same_every_time(tmp_path):
    documents = list(generated("text", 200, 5))
    for name, order in (("a", 1), ("b", 1), ("c", -1)):
        train(documents[::order], TrainTokenizer(vocab_size=500), tmp_path / name)
    written = {name: (tmp_path / name / "tokenizer.json").read_bytes() for name in "abc"}
    assert written["a"] == written["b"] == written["c"]


def test_few_texts_give_fewer_pieces(tmp_path):
    assert train(["ab ab ab"], TrainTokenizer(vocab_size=5000), tmp_path / "t") == 4 + 256 + 2
    assert Tokenizer.from_dir(tmp_path / "t").decode(Tokenizer.from_dir(tmp_path / "t").encode("龙 ab")) == "龙 ab"
    with pytest.raises(ValueError, match="named twice"):
        train([], TrainTokenizer(special=("<|im_end|>",)), tmp_path / "u")


def check_batches(folder, documents):
    encoder = Encoder(folder)
    tokenizer = encoder.tokenizer
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    after = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    found = encoder.texts(documents)
    for text, ids in zip(documents, found, strict=True):
        assert ids == before + tokenizer.encode(text) + after, repr(text[:100])
    assert encoder.texts(documents[::-1]) == found[::-1]


def test_batches_are_single_texts(folder):
    check_batches(folder, [*HARD, *generated("text", 80, 4)])
    assert Encoder(folder).texts([]) == []


def test_a_library_that_disagrees_ends_the_build(folder, tmp_path):
    """Somebody changes the file behind our back so that the library normalises and we, too late to see it, do not."""
    encoder = Encoder(folder)
    encoder._library.normalizer = pytest.importorskip("tokenizers").normalizers.Lowercase()
    with pytest.raises(AssertionError, match="disagree"):
        encoder.texts(["UPPER CASE"])


@pytest.mark.parametrize("name", ["minicpm3", "minicpm-2b"])
def test_minicpm_tokenizers(name):
    path = SHARED / "tokenizers" / name
    if not path.is_dir():
        pytest.skip(f"{name} is not there: set GANGPAO_SHARED to the folder that holds tokenizers")
    check_batches(path, [*HARD, *generated("text", 40, 4)])
    ids, mask = Encoder(path).chat([{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}])
    assert len(ids) == len(mask)
    assert 0 < sum(mask) < len(ids)


def test_the_template_s_text_is_what_the_family_writes(folder):
    """A second opinion that has no code of ours: jinja itself."""
    jinja2 = pytest.importorskip("jinja2")
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "a"},
    ]
    for last in (True, False):
        expected = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=last)
        assert ChatTemplate.named("chatml").render(messages, add_generation_prompt=last) == expected
    assert np.all([p in CHAT_TEMPLATE for p in CHAT_MARKS])
