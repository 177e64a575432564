"""The tokenizer over small vocabularies: special pieces, prefixes, decoding, streams, damaged metadata."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.text.pretokenizers import PRE_TOKENIZERS, by_name
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny

BPE = Tokenizer.from_gguf(tiny.byte_level())
SPM = Tokenizer.from_gguf(tiny.sentencepiece())
BOTH = pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])

anything = st.text(st.characters(), max_size=30)
with_special = st.lists(
    st.one_of(anything, st.sampled_from(["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<tool>", "<|", "|>", "<unk>"])),
    max_size=8,
).map("".join)


def pieces(tokenizer, ids):
    return [tokenizer.vocabulary.pieces[i] for i in ids]


def test_merges_and_special_pieces_of_byte_level_bpe():
    assert pieces(BPE, BPE.encode("hello hello你")) == ["hello", "Ġhello", "ä½ł"]
    text = "<|im_start|>hello<tool><|im_end|>"
    assert pieces(BPE, BPE.encode(text, parse_special=True)) == ["<|im_start|>", "hello", "<tool>", "<|im_end|>"]
    ids = BPE.encode(text)
    assert "<tool>" in pieces(BPE, ids)  # user-defined pieces are text, and are found in it
    assert not BPE.control_ids & set(ids)
    assert BPE.decode(ids) == text


def test_sentencepiece_merges_by_score_leftmost_first_and_prefixes_a_space():
    assert pieces(SPM, SPM.encode("hello")) == ["▁hello"]
    assert pieces(SPM, SPM.encode("hello", start=False)) == ["hello"]
    assert pieces(SPM, SPM.encode("aaaaaaa", start=False)) == ["aaaa", "aaa"]
    assert pieces(SPM, SPM.encode("é", start=False)) == ["<0xC3>", "<0xA9>"]
    assert pieces(SPM, SPM.encode("<s>hello", parse_special=True, start=False)) == ["<s>", "▁hello"]
    bare = Tokenizer.from_gguf(tiny.sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}))
    assert pieces(bare, bare.encode("hello")) == ["hello"]


def test_no_text_merges_into_a_control_piece():
    assert pieces(SPM, SPM.encode("</s>", start=False)) == ["</", "s>"]


def test_an_ordinary_piece_does_not_end_an_answer_because_it_looks_like_one_that_does():
    assert BPE.id_of("</s>") not in BPE.end_ids  # built by merging: plain HTML
    assert SPM.id_of("</s>") in SPM.end_ids
    ends = {BPE.id_of(p) for p in ("<|im_end|>", "<|endoftext|>")}
    assert BPE.end_ids == ends
    extra = Tokenizer.from_gguf(tiny.byte_level(**{"tokenizer.ggml.eot_token_id": np.uint32(4)}))
    assert extra.end_ids == ends | {4}


def test_bos():
    assert SPM.adds_bos
    assert not BPE.adds_bos
    assert SPM.encode("", add_bos=True) == [1]
    assert BPE.encode("h", add_bos=True)[0] == BPE.bos_id
    without = tiny.byte_level()
    del without["tokenizer.ggml.bos_token_id"]
    without["tokenizer.ggml.add_bos_token"] = True
    tokenizer = Tokenizer.from_gguf(without)
    assert tokenizer.bos_id is None
    assert not tokenizer.adds_bos
    with pytest.raises(ValueError, match="no BOS"):
        tokenizer.encode("h", add_bos=True)


def test_lone_surrogates_count_as_replacement_characters():
    for tokenizer in (BPE, SPM):
        assert tokenizer.encode("a\ud800b\udc00") == tokenizer.encode("a\ufffdb\ufffd")
        assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_ids_outside_the_vocabulary_are_silent():
    assert BPE.decode([BPE.vocab_size, 10**9, -1]) == ""
    assert BPE.token_bytes(BPE.id_of("[PAD7]")) == b""


@BOTH
@settings(max_examples=150, deadline=None)
@given(text=with_special)
def test_text_never_becomes_a_control_piece_and_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(ids)
    if tokenizer is SPM and "<tool>" in text:
        return  # llama.cpp starts anew after a user-defined piece, with a space
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("▁", " ")
    assert tokenizer.decode(ids).replace("▁", " ") == expected
    again = tokenizer.encode(text, start=False)
    assert tokenizer.decode(again, start=False).replace("▁", " ") == expected


@BOTH
@settings(max_examples=200, deadline=None)
@given(data=st.data(), keep_special=st.booleans(), start=st.booleans())
def test_a_stream_says_what_decoding_the_whole_says(tokenizer, data, keep_special, start):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    stream = tokenizer.stream(keep_special=keep_special, start=start)
    parts = [stream.push(i) for i in ids]
    whole = tokenizer.decode(ids, keep_special=keep_special, start=start)
    assert "".join([*parts, stream.flush()]) == whole
    skipped = () if keep_special else tokenizer.control_ids
    data_bytes = b"".join(tokenizer.token_bytes(i) for i in ids if i not in skipped)
    text = data_bytes.decode("utf-8", "replace")
    assert whole in (text, text.removeprefix(" "))


def test_a_stream_holds_a_character_back_until_it_is_whole():
    stream = BPE.stream()
    ids = [BPE.id_of(c) for c in "ðŁĺĢ"]  # the four bytes of one emoji
    assert [stream.push(i) for i in ids] == ["", "", "", "😀"]
    assert stream.push(ids[0]) == ""
    assert stream.push(BPE.id_of("h")) == "\ufffdh"
    stream.push(ids[0])
    assert stream.flush() == "\ufffd"


def test_special_pieces_show_only_when_kept():
    ids = [BPE.id_of("<|im_start|>"), BPE.id_of("hello"), BPE.id_of("<|im_end|>")]
    assert BPE.decode(ids) == "hello"
    assert BPE.decode(ids, keep_special=True) == "<|im_start|>hello<|im_end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": None}, "no tokenizer.ggml.model"),
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.model": 3}, "damaged"),
        ({"tokenizer.ggml.pre": "made-up"}, "'made-up'"),
        ({"tokenizer.ggml.pre": 7}, "tokenizer.ggml.pre"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": ["a", 3]}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type"),
        ({"tokenizer.ggml.token_type": np.ones(999)}, "integers"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token"),
    ],
)
def test_damaged_metadata_is_refused_by_name(change, message):
    metadata = {**tiny.byte_level(), **change}
    if change.get("tokenizer.ggml.tokens"):
        metadata["tokenizer.ggml.token_type"] = [1] * 3
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_gguf({k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize("scores", [[0.0], [float("nan")] * 999, "x", None])
def test_damaged_scores_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        Tokenizer.from_gguf(tiny.sentencepiece(**{"tokenizer.ggml.scores": scores}))


def test_odd_metadata_is_tolerated_as_llama_cpp_tolerates_it():
    metadata = tiny.byte_level(**{"tokenizer.ggml.eos_token_id": 10**6, "tokenizer.chat_template": b"x"})
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "no", "", "not there"]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_id is None
    assert tokenizer.chat_template is None
    assert pieces(tokenizer, tokenizer.encode("hello")) == ["hello"]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loses_nothing(name):
    tokenizer = Tokenizer.from_gguf(tiny.byte_level(name))
    text = "Hello, y'all!  It's 12345 \t\r\n\n  天气 ½ Ωmega émoji👍🏽 \u3000'LL  "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert by_name(name).patterns


def test_a_long_text_has_the_ids_of_its_parts():
    text = "hello hello你 <tool>" * 2000  # the library has a way of its own for these
    assert BPE.encode(text) == BPE.encode("hello hello你 <tool>") * 2000
