"""MinHash against the exact Jaccard similarity, and the runs it works on against a slow definition."""

import re

import numpy as np
import pytest

from gangpao.data.cleaning.dedup import MinHash, exact_duplicates, jaccard, near_duplicates
from gangpao.data.cleaning.ngrams import runs, units
from gangpao.data.cleaning.ngrams import shingles as shingles_of
from tests.data import makers


def shingles(text, length):
    return shingles_of(units(text), length)


def slow_units(text):
    return re.findall(r"[\u4e00-\u9fff]|[a-z0-9à-ÿ]+", text.lower())


def slow_runs(text, length):
    found = slow_units(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


TEXTS = [
    "The quick brown fox, the quick brown fox!",
    "计算2+2等于4。大家好 hello世界ABC",
    "a b a b a b a b a b",
    "x" * 500 + " " + "x" * 501 + " " + "x" * 500,
    "第1条 为了促进……",
    "été naïve façade 12abc34",
    "",
    " \n\t!?",
    "字",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_runs_are_those_of_the_slow_definition(text, length):
    """Equal units have equal hashes and others have not, in the same order."""
    found, expected = units(text), slow_units(text)
    assert len(found) == len(expected)
    table = {}
    for one, name in zip(found.tolist(), expected, strict=True):
        assert table.setdefault(name, one) == one
    assert len(set(table.values())) == len(table)
    assert len(np.unique(runs(found, length))) == len(slow_runs(text, length))


def test_formatting_does_not_matter():
    assert (units("Hello, World! 你好。") == units("**hello** world\n\n你 好")).all()
    assert not set(shingles("one two three four five", 5).tolist()) & set(
        shingles("five four three two one", 5).tolist()
    )
    assert len(shingles("three words only", 5)) == 1
    assert shingles("three words only", 5).tolist() != shingles("three words", 5).tolist()


def test_no_collisions_among_many_words():
    text = " ".join(f"{i}x{i * 7}" for i in range(200_000))
    assert len(np.unique(units(text))) == 200_000


def pair(random, size, similarity):
    """Two sets of hashes with the wanted Jaccard similarity."""
    shared = round(2 * size * similarity / (1 + similarity))
    values = np.unique(random.integers(0, 1 << 63, 2 * size).astype(np.uint64))
    random.shuffle(values)
    return np.sort(values[:size]), np.sort(np.concatenate([values[:shared], values[size : 2 * size - shared]]))


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [30, 300, 5000])
def test_signatures_estimate_the_jaccard_similarity(similarity, size):
    """Unbiased, and with the spread of independent functions: correlated ones would show here."""
    random = np.random.default_rng(size)
    hasher = MinHash(20, 6)
    errors = []
    for _ in range(150 if size < 1000 else 30):
        a, b = pair(random, size, similarity)
        agree = (hasher.signature(a) == hasher.signature(b)).mean()
        errors.append(agree - jaccard(a, b))
    spread = (similarity * (1 - similarity) / 120) ** 0.5
    assert abs(np.mean(errors)) < 4 * spread / len(errors) ** 0.5
    assert np.std(errors) < 1.3 * spread


def corpus(random, originals, copies_each):
    """Documents of 40 to 400 words, and copies with a share of their words replaced: (texts, sets)."""
    texts = [makers.words(random, int(n)) for n in random.integers(40, 400, originals)]
    for i in range(originals):
        for _ in range(copies_each):
            copy = list(texts[i])
            for at in random.choice(len(copy), int(random.uniform(0, 0.05) * len(copy)), replace=False):
                copy[at] = f"new{random.integers(10**9)}"
            texts.append(copy)
    order = random.permutation(len(texts))
    texts = [" ".join(texts[i]) for i in order]
    return texts, [shingles(text, 5) for text in texts]


def test_recall_and_precision_against_every_pair():
    random = np.random.default_rng(3)
    _, sets = corpus(random, 150, 3)
    hasher = MinHash(20, 6)
    signatures = np.stack([hasher.signature(s) for s in sets])
    dropped = near_duplicates(signatures, hasher, 0.8, lambda i, j: jaccard(sets[i], sets[j]))
    exact = np.array([[jaccard(a, b) for b in sets] for a in sets])
    # Precision: whatever is dropped is similar to something earlier that stays.
    for document, kept in dropped.items():
        assert kept < document
        assert kept not in dropped
        assert exact[document, kept] >= 0.8
    # Recall: pairs that are similar and both stay are misses.
    stays = [i for i in range(len(sets)) if i not in dropped]
    misses = sum(exact[i, j] >= 0.8 for n, i in enumerate(stays) for j in stays[:n])
    assert len(dropped) > 100
    assert misses <= 0.005 * len(dropped) + 1


def test_nothing_is_dropped_for_being_like_something_dropped():
    """a is like b and b like c, but a not like c: the chain costs b alone."""
    base = np.arange(1000, dtype=np.uint64)
    spread = np.random.default_rng(0).permutation(1 << 20).astype(np.uint64) << np.uint64(43)
    sets = [np.sort(spread[base + np.uint64(step)]) for step in (0, 90, 180)]
    assert jaccard(sets[0], sets[1]) > 0.8 > jaccard(sets[0], sets[2])
    hasher = MinHash(60, 4)
    signatures = np.stack([hasher.signature(s) for s in sets])
    assert near_duplicates(signatures, hasher, 0.8, lambda i, j: jaccard(sets[i], sets[j])) == {1: 0}


def test_a_thousand_equal_documents_cost_a_thousand_comparisons():
    hasher = MinHash(20, 6)
    one = shingles(" ".join(makers.words(np.random.default_rng(0), 50)), 5)
    signatures = np.stack([hasher.signature(one)] * 1000)
    calls = []
    dropped = near_duplicates(signatures, hasher, 0.8, lambda i, j: calls.append((i, j)) or 1.0)
    assert dropped == dict.fromkeys(range(1, 1000), 0)
    assert len(calls) == 999


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_documents(count):
    hasher = MinHash(4, 2)
    sets = [shingles(f"text number {i}", 2) for i in range(count)]
    signatures = np.array([hasher.signature(s) for s in sets], np.uint32).reshape(count, 8)
    assert near_duplicates(signatures, hasher, 0.9, lambda i, j: jaccard(sets[i], sets[j])) == {}
    assert exact_duplicates(np.zeros((count, 2), np.uint64)) == dict.fromkeys(range(1, count), 0)


def test_equal_rows_keep_the_first():
    digests = np.array([[1, 2], [3, 4], [1, 2], [1, 3], [3, 4], [1, 2]], np.uint64)
    assert exact_duplicates(digests) == {2: 0, 4: 1, 5: 0}


@pytest.mark.slow
def test_the_curve_of_candidates_is_the_formula():
    """How often two documents share a band, over similarities: 1 - (1 - s^6)^20."""
    random = np.random.default_rng(5)
    hasher = MinHash(20, 6)
    for similarity in (0.3, 0.5, 0.6, 0.7, 0.8):
        hits = 0
        for _ in range(600):
            a, b = (hasher.signature(s).reshape(20, 6) for s in pair(random, 400, similarity))
            hits += bool((a == b).all(axis=1).any())
        expected = 1 - (1 - similarity**6) ** 20
        assert abs(hits / 600 - expected) < 4 * (expected * (1 - expected) / 600) ** 0.5 + 0.01
