"""Byte-level BPE in plain Python gives the ids of the tokenizers library, for every rule by which words are cut."""

import random
import sys
import unicodedata

import pytest

from gangpao.text.bpe import ByteLevelMerger, expression
from gangpao.text.mergers import byte_level_merger
from gangpao.text.pretokenizers import RULES, PreTokenizer
from gangpao.text.vocabulary import BYTE_LEVEL
from tests.text.corpus import lines

TEXTS = lines(80, 1)


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes and some hundred merges, taken from texts by frequency of neighbours."""
    spelled = {b: c for c, b in BYTE_LEVEL.items()}
    words = ["".join(spelled[b] for b in text.encode()) for text in TEXTS]
    ids = {c: i for i, c in enumerate(BYTE_LEVEL)}
    merges: list[tuple[str, str]] = []
    rng = random.Random(1)
    parts = [list(word) for word in words if word]
    for _ in range(400):
        text = rng.choice(parts)
        if len(text) < 2:
            continue
        at = rng.randrange(len(text) - 1)
        a, b = text[at], text[at + 1]
        merges.append((a, b))
        ids.setdefault(a + b, len(ids))
        for one in parts:
            i = 0
            while i < len(one) - 1:
                if (one[i], one[i + 1]) == (a, b):
                    one[i : i + 2] = [a + b]
                i += 1
    return ids, list(dict.fromkeys(merges))


def samples() -> list[str]:
    """Real texts, every kind of border, and runs of characters of all kinds."""
    rng = random.Random(2)
    known = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    signs = "aZ09 \t\n\r'ſ.,$-_/()[]{}éßΩж中字ー한ก١²Ⅷ½️́ \u00a0\u2003\u3000\x1c\x85🙂👍🏽"
    mixed = ["".join(rng.choices(signs, k=rng.randrange(1, 30))) for _ in range(150)]
    strange = ["".join(rng.choices(known, k=20)) for _ in range(150)]
    return [
        *TEXTS,
        *lines(250, 2),
        *mixed,
        *strange,
        "a" * 300,
        "don't I'LL we'Ve it'S",
        "  \n\n  x \n",
        "\n",
        " ",
        "x  ",
        "12345 678",
    ]


@pytest.mark.parametrize("rule", RULES, ids=[names[0] for names in RULES.values()])
def test_ids_are_the_librarys(rule: PreTokenizer) -> None:
    ids, merges = vocabulary()
    library, ours = byte_level_merger(ids, merges, rule), ByteLevelMerger(ids, merges, rule)
    assert type(library) is not ByteLevelMerger
    for text in samples():
        assert ours.encode(text) == library.encode(text), repr(text)


def test_bytes_that_a_vocabulary_lacks_are_left_out_as_the_library_does() -> None:
    ids, merges = vocabulary()
    rule = next(iter(RULES))
    for byte in "aé "[:1]:
        ids = {piece: i for piece, i in ids.items() if byte not in piece}
    library, ours = byte_level_merger(ids, merges, rule), ByteLevelMerger(ids, merges, rule)
    assert ours.encode("banana cab") == library.encode("banana cab")


def test_real_vocabularies(model_path) -> None:
    from gangpao.formats.gguf import GGUF
    from gangpao.text.tokenizer import Tokenizer

    with GGUF.open(model_path("smollm2-135m")) as gguf:
        metadata = dict(gguf.metadata)
    library = Tokenizer.from_gguf(metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        ours = Tokenizer.from_gguf(metadata)
    assert isinstance(ours.merge, ByteLevelMerger)
    for text in samples():
        assert ours.encode(text) == library.encode(text)


def test_one_long_word_takes_no_longer_than_many_short_ones() -> None:
    ids, merges = vocabulary()
    ours = ByteLevelMerger(ids, merges, next(iter(RULES)))
    assert len(ours.encode("ab" * 20_000)) > 0


def test_a_class_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="inside of brackets"):
        expression(r"[\S]")
