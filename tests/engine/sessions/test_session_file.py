"""A cache that went through a file answers with the same bits, and a file that is not right is refused and left alone."""

import json
import random

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.saved import session as file
from gangpao.engine.saved.session import SessionFileError, restore, save
from gangpao.engine.sessions import identity
from tests.engine import hybrid
from tests.engine.tiny import write_tiny

PROMPT = [random.Random(4).randrange(256) for _ in range(200)]
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=30, logprobs=2)


def answer(engine, ids, session=None):
    run = engine.generate(ids, PARAMS, session=session)
    pieces = list(run)
    return run.text, [x for p in pieces for x in p.logprobs], run.stats.cached_tokens


@pytest.fixture(scope="module", params=["f16", "int8", "hybrid"])
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    if request.param == "hybrid":
        path = hybrid.write(folder / "h.gguf", hybrid.build(hybrid.hybrid()))
        return Engine.load(path, context=1024, num_threads=1)
    return Engine.load(write_tiny(folder / "t.gguf"), context=512, num_threads=1, kv_dtype=request.param)


@pytest.fixture
def kept(engine, tmp_path):
    """A file with the cache of a prompt and its answer."""
    session = engine.session()
    answer(engine, PROMPT, session)
    assert save(tmp_path / "a.kv", session) > 190
    return tmp_path / "a.kv"


def test_an_answer_behind_it_is_the_one_without(engine, kept):
    again = Engine.load(engine.gguf.path, context=engine.context, num_threads=1, kv_dtype=engine.kv_dtype)
    for question in (PROMPT, [*PROMPT[:195], *PROMPT[:40]]):
        session = again.session()
        assert restore(kept, session) == len(session.ids) > 190
        text, logprobs, cached = answer(again, question, session)
        assert (text, logprobs) == answer(again, question)[:2]
        assert cached >= 192


def test_it_goes_on_where_it_was(engine, kept):
    session = engine.session()
    count = restore(kept, session)
    assert np.array_equal(
        session.feed([5, 6]),
        engine.model.forward([*session.ids], engine.model.new_cache(engine.context, engine.kv_dtype)),
    )
    assert len(session.ids) == count + 2


def test_any_change_is_found_and_the_file_stays(engine, kept):
    good = kept.read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        kept.write_bytes(bad)
        session = engine.session()
        used = session.cache.pool.pages_used
        with pytest.raises(SessionFileError, match=r"a\.kv"):
            restore(kept, session)
        assert (session.ids, session.cache.length, session.cache.pool.pages_used) == ([], 0, used)
        assert kept.read_bytes() == bytes(bad)
    for size in (0, 5, 30, 60, len(good) // 2, len(good) - 1):
        kept.write_bytes(good[:size])
        with pytest.raises(SessionFileError):
            restore(kept, engine.session())
    kept.write_bytes(good)
    assert restore(kept, engine.session()) > 190


def test_a_header_that_lies_is_refused(engine, kept):
    """Its checksum is right, as whoever writes a hostile file would have it."""
    data, at = kept.read_bytes(), len(file.MAGIC) + 40
    good = json.loads(data[at : at + int.from_bytes(data[at - 40 : at - 32], "little")])
    assert file._possible(good, engine.session())
    for field, value in (
        ("ids", good["ids"][:-70]),
        ("ids", [-1, *good["ids"][1:]]),
        ("ids", [1.5] * 3),
        ("pages", []),
    ):
        assert not file._possible({**good, field: value}, engine.session())


def test_what_is_of_something_else_is_named(engine, kept, tmp_path, monkeypatch):
    if engine.model.config.recurrent_layers:
        pytest.skip("the same for all")
    other = Engine.load(write_tiny(tmp_path / "o.gguf", seed=1), context=512, num_threads=1, kv_dtype=engine.kv_dtype)
    with pytest.raises(SessionFileError, match="another model"):
        restore(kept, other.session())
    third = Engine.load(
        engine.gguf.path, context=512, num_threads=1, kv_dtype="f16" if engine.kv_dtype == "int8" else "int8"
    )
    with pytest.raises(SessionFileError, match="--kv"):
        restore(kept, third.session())
    monkeypatch.setattr(identity, "KERNELS_VERSION", 0)
    with pytest.raises(SessionFileError, match="kernels"):
        restore(kept, engine.session())


def test_what_does_not_fit_a_narrow_context_stays_in_the_file(engine, kept):
    if engine.model.config.recurrent_layers:
        pytest.skip("a state is of one position")
    narrow = Engine.load(engine.gguf.path, context=100, num_threads=1, kv_dtype=engine.kv_dtype)
    session = narrow.session()
    assert restore(kept, session) == 100
    assert answer(narrow, PROMPT[:80], session)[0] == answer(narrow, PROMPT[:80])[0]


def test_a_failed_write_leaves_the_old_file(engine, kept, monkeypatch):
    good = kept.read_bytes()
    session = engine.session()
    answer(engine, PROMPT[:100], session)
    monkeypatch.setattr(file.atomic, "sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(kept, session)
    assert kept.read_bytes() == good
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
