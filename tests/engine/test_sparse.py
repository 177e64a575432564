"""Sparse attention in the engine: an option that changes answers, and then the same bits however they are come by."""

import random

import numpy as np
import pytest

from gangpao import kernels
from gangpao.engine.generate import Engine
from gangpao.engine.layers import sparse
from gangpao.engine.memory import EngineOptions, estimate, plan_memory
from gangpao.engine.sample import SamplingParams
from gangpao.engine.saved.session import SessionFileError, restore, save
from gangpao.engine.scheduler import Scheduler
from tests.engine.company import alone, ask
from tests.engine.tiny import write_tiny

IDS = [random.Random(8).randrange(256) for _ in range(900)]
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=150, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("sparse") / "t.gguf", context=2048)


@pytest.fixture
def engine(path, monkeypatch):
    """256 positions from position 256 on: one block first, one near, two chosen."""
    monkeypatch.setattr(sparse, "DENSE", 256)
    monkeypatch.setattr(sparse, "LEAST", 256)
    return Engine.load(path, context=1536, num_threads=2, sparse=256)


def rows(engine, ids, cuts=()):
    cache, out, begin = engine.model.new_cache(1536), [], 0
    for end in (*cuts, len(ids)):
        out.append(engine.model.forward(ids[begin:end], cache, all_logits=True))
        begin = end
    return np.concatenate(out)


def test_up_to_the_border_it_is_plain_attention_and_behind_it_is_not(engine, path):
    plain = rows(Engine.load(path, context=1536), IDS)
    found = rows(engine, IDS)
    assert np.array_equal(found[:256], plain[:256])
    assert not np.array_equal(found[600:], plain[600:])
    assert np.corrcoef(found[600:].ravel(), plain[600:].ravel())[0, 1] > 0.9


def test_cut_as_you_like_and_with_any_number_of_threads(engine):
    expected = rows(engine, IDS)
    assert np.array_equal(rows(engine, IDS, (1, 255, 257, 600, 601)), expected)
    kernels.set_num_threads(1)
    assert np.array_equal(rows(engine, IDS, (300,)), expected)


def test_what_was_taken_back_leaves_no_trace(engine):
    """Drafts that were wrong and questions that were changed had filled pages with other keys."""
    cache = engine.model.new_cache(1536)
    engine.model.forward([*IDS[:500], *(99,) * 300], cache)
    cache.truncate(500)
    engine.model.forward(IDS[500:800], cache)
    assert np.array_equal(engine.model.forward(IDS[800:], cache), rows(engine, IDS)[-1])


def test_alone_and_in_company_behind_a_shared_beginning(engine):
    prompts = [IDS[:700], [*IDS[:640], *IDS[:30]], IDS[:40]]
    expected = [alone(engine, ids, PARAMS)[0] for ids in prompts]
    scheduler = Scheduler(engine, batch=3, pool_tokens=6000)
    try:
        for _ in range(2):  # the second time behind what is remembered
            assert [one.wait() for one in [ask(scheduler, ids, PARAMS) for ids in prompts]] == expected
    finally:
        scheduler.close()


def test_a_cache_on_disk_knows_how_it_was_computed(engine, path, tmp_path):
    session = engine.session()
    list(engine.generate(IDS[:600], PARAMS, session=session))
    assert save(tmp_path / "a.kv", session) > 600
    again = engine.session()
    assert restore(tmp_path / "a.kv", again) > 600
    run = engine.generate([*IDS[:600], 1, 2], PARAMS, session=again)
    list(run)
    assert run.text == alone(engine, [*IDS[:600], 1, 2], PARAMS)[0]
    other = Engine.load(path, context=1536)
    with pytest.raises(SessionFileError, match="--sparse"):
        restore(tmp_path / "a.kv", other.session())


def test_memory_counts_the_means(engine):
    gguf, config = engine.gguf, engine.model.config
    more = estimate(gguf, config, 1536, "f16", sparse=256).cache - estimate(gguf, config, 1536, "f16").cache
    assert more * 16 == estimate(gguf, config, 1536, "f16").cache
    assert engine.model.new_pool(1536).nbytes == estimate(gguf, config, 1536, "f16", sparse=256).cache


def test_too_few_positions_are_refused_before_anything_is_read(path):
    assert sparse.rule_of(0) is None
    assert sparse.blocks_of(4096) == (8192, 1, 16, 47)
    assert sparse.blocks_of(16_384)[0] == 16_384
    with pytest.raises(ValueError, match="at least 1024 positions"):
        Engine.load(path, sparse=100)
    with Engine.load(path).gguf as gguf, pytest.raises(ValueError, match="--sparse 1"):
        plan_memory(gguf, Engine.load(path).model.config, None, "f16", sparse=1)
    assert EngineOptions().sparse == 0
