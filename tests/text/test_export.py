"""Tokenizers as GGUF metadata: the same ids on the other side, for every rule and for the real MiniCPM vocabularies."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from gangpao.text.export import PROBE, gguf_metadata, rule_name
from gangpao.text.pretokenizers import RULES, by_name
from gangpao.text.tokenizer import Tokenizer
from tests.text.corpus import lines

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
