"""Pages that sequences share: what is found again is what was computed, nothing is lost, nothing is written into another's page."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.engine.cache import PAGE, KVPool, bytes_needed, common
from gangpao.engine.rope import Angles
from gangpao.engine.transformer import Segment, Transformer
from gangpao.formats.gguf import GGUF
from tests.engine.tiny import write_tiny
from tests.formats.gguf_maker import random_model

SHAPE = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 64, "num_layers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with GGUF.open(write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf")) as gguf:
        yield Transformer.load(gguf)


def compute(model, pool, ids):
    """A sequence that begins with what the pool remembers; with its logits behind the last id."""
    cache = pool.match_prefix(ids)
    return cache, model.forward(ids[cache.length :], cache)


def check(pool: KVPool, live) -> None:
    """Every page is free, or counted once for each sequence and the tree."""
    users = [0] * pool.pages
    for cache in live:
        for page in cache.pages:
            users[page] += 1
    for page in pool._nodes:
        users[page] += 1
    assert users == pool._users
    assert sorted(pool._free) == [p for p in range(pool.pages) if users[p] == 0]


def test_a_prefix_is_found_and_gives_the_same_bits(model):
    pool = model.new_pool(512, tokens=2048)
    first = list(range(200))
    cache, logits = compute(model, pool, first)
    pool.finish(cache, first)
    for shared in (1, 63, 64, 65, 128, 199):
        ids = [*first[:shared], 250, *range(30)]
        cache, got = compute(model, pool, ids)
        assert np.array_equal(got, model.forward(ids, model.new_cache(512)))
        check(pool, [cache])
        pool.finish(cache, ids)
    cache = pool.match_prefix(first)
    assert cache.length == 199  # one id is left, for its logits
    assert np.array_equal(model.forward(first[-1:], cache), logits)


def test_what_is_shared_is_copied_before_it_is_written(model):
    pool = model.new_pool(512, tokens=1024)
    ids = list(range(40))
    cache, _ = compute(model, pool, ids)
    pool.finish(cache, ids)
    one, two = pool.match_prefix([*ids, 1]), pool.match_prefix([*ids, 2])
    assert one.pages == two.pages
    assert one.length == two.length == 40
    a = model.forward([1, 5, 6], one)
    b = model.forward([2, 7, 8], two)
    assert one.pages != two.pages
    assert np.array_equal(a, model.forward([*ids, 1, 5, 6], model.new_cache(64)))
    assert np.array_equal(b, model.forward([*ids, 2, 7, 8], model.new_cache(64)))


def test_sequences_in_one_step_are_those_alone(model):
    """Prompts of all lengths, common beginnings, one token and many, in one pass over the weights."""
    rng = random.Random(4)
    pool = model.new_pool(256, tokens=256 * 12)
    begin = [rng.randrange(256) for _ in range(100)]
    first, _ = compute(model, pool, begin)
    pool.insert_prefix(first, begin)
    texts = [
        [*begin[: rng.randrange(101)], *(rng.randrange(256) for _ in range(rng.randrange(1, 20)))] for _ in range(9)
    ]
    segments = []
    for ids in texts:
        cache = pool.match_prefix(ids)
        rest = ids[cache.length :][:25]
        assert cache.reserve(len(rest))
        segments.append(Segment(cache, rest, min(2, len(rest))))
    lengths = [s.cache.length for s in segments]
    for segment, rows, ids, length in zip(segments, model.step(segments), texts, lengths, strict=True):
        whole = model.forward(ids[: length + len(segment.ids)], model.new_cache(256), all_logits=True)
        assert np.array_equal(rows, whole[len(whole) - segment.logits :])


def test_hidden_states_are_those_of_the_logits(model):
    cache = model.new_cache(64)
    assert cache.reserve(5)
    (states,) = model.step([Segment(cache, [1, 2, 3, 4, 5], hidden=True)])
    logits = model.forward([1, 2, 3, 4, 5], model.new_cache(64), all_logits=True)
    head = model.embed(np.arange(model.config.vocab_size))  # tied in this model
    np.testing.assert_allclose(states @ head.T, logits, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([6, 9, 300]))
def test_books_are_kept(rng, pages):
    """Random beginnings, growths, cuts and ends over a small alphabet, without a model: no page is lost or given out twice."""
    config = _Config()
    pool = KVPool(config, PAGE * 4, "f16", PAGE * pages, Angles(np.ones(8), 1.0))
    live: list = []
    known: list[list[int]] = []
    for _ in range(60):
        action = rng.random()
        if action < 0.5 or not live:
            ids = [rng.randrange(2) if i % 50 == 0 else 0 for i in range(rng.randrange(1, PAGE * 4))]
            cache = pool.match_prefix(ids)
            # Nothing is found that was not remembered; with room for everything (300) nothing is forgotten either.
            best = max((common(ids[:-1], k) for k in known), default=0)
            assert cache.length == best if pages == 300 else cache.length <= best
            if cache.reserve(len(ids) - cache.length):
                cache.length = len(ids)
                live.append((cache, ids))
            else:
                pool.free(cache.pages)
        elif action < 0.7:
            cache, ids = rng.choice(live)
            cache.truncate(rng.randrange(cache.length + 1))
            del ids[cache.length :]
        else:
            cache, ids = live.pop(rng.randrange(len(live)))
            known.append(list(ids))
            pool.finish(cache, ids)
        check(pool, [cache for cache, _ in live])


class _Config:
    num_hidden_layers, num_key_value_heads, head_dim = 1, 1, 16
    attention_layers, recurrent_layers, layer_types, delta = 1, 0, (), None
    key_bias = False


def test_the_longest_unused_goes_first():
    pool = KVPool(_Config(), PAGE * 2, "int8", PAGE * 4, Angles(np.ones(8), 1.0))
    for start in (0, 1000, 2000):
        cache = pool.match_prefix([*range(start, start + PAGE)])
        assert cache.reserve(PAGE - cache.length)
        cache.length = PAGE
        pool.finish(cache, list(range(start, start + PAGE)))
    used = pool.match_prefix([*range(PAGE), 7])  # the oldest is used again
    assert used.length == PAGE
    fresh = pool.new()
    assert fresh.reserve(PAGE * 2)  # one page is free, one has to go: that of 1000
    assert pool.match_prefix([*range(1000, 1000 + PAGE), 7]).length == 0
    assert pool.match_prefix([*range(2000, 2000 + PAGE), 7]).length == PAGE


def test_a_full_pool_says_no_and_loses_nothing():
    pool = KVPool(_Config(), PAGE * 3, "f16", PAGE * 3, Angles(np.ones(8), 1.0))
    one, two = pool.new(), pool.new()
    assert one.reserve(PAGE * 2)
    assert not two.reserve(PAGE * 2)
    assert not one.reserve(PAGE * 4)  # more than a context
    pool.free(two.pages)
    two.pages.clear()
    check(pool, [one])


def test_bytes_are_counted_without_making_anything(tmp_path):
    random_model(tmp_path / "m.gguf", "llama", seed=1, kind="Q8_0", tied=True, **SHAPE)
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        model = Transformer.load(gguf)
        for dtype in ("f16", "int8"):
            assert model.new_pool(100, dtype).nbytes == bytes_needed(model.config, 100, dtype)
            assert model.new_pool(100, dtype, 1000).nbytes == bytes_needed(model.config, 1000, dtype)
