"""A small model drafts: the same text, its cache follows, and what does not fit is refused."""

import itertools

import numpy as np
import pytest

from gangpao.engine import memory
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.engine.sample import Sampler, SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.speculate import draft_model as draft_module
from gangpao.engine.speculate.draft_model import ModelDrafter
from gangpao.formats.gguf import GGUF
from tests.engine.company import alone, ask
from tests.engine.speculate.machines import where_drafts_pay
from tests.engine.tiny import SPECIAL, byte_pieces, write_tiny

IDS = [*b"the quick brown fox "]
SETTINGS = [
    SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=60),
    SamplingParams(temperature=0.9, seed=5, top_k=20, repetition_penalty=1.1, max_tokens=60),
    SamplingParams(temperature=1.4, seed=6, max_tokens=60, logprobs=2),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("large") / "large.gguf", seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the same vocabulary."""
    return write_tiny(tmp_path_factory.mktemp("small") / "small.gguf", seed=7)


@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize("same", [True, False])
def test_the_same_text_with_a_draft_model(engine, path, other, params, same):
    """The model itself as its draft is always right; another is mostly wrong."""
    model = where_drafts_pay(path, path if same else other)
    generation = model.generate(IDS, params)
    pieces = list(generation)
    expected = alone(engine, IDS, params)
    assert (generation.text, [i for p in pieces for i in p.ids], [x for p in pieces for x in p.logprobs]) == expected
    if same:
        assert generation.stats.accepted == generation.stats.drafted >= 30  # the draws are the same, too


def test_the_scheduler_and_a_talk_draft_with_it(engine, path):
    model = where_drafts_pay(path, path)
    scheduler = Scheduler(model, batch=3)
    params = SETTINGS[1]
    try:
        one = ask(scheduler, IDS, params)
        assert one.wait() == alone(engine, IDS, params)[0]
        assert one.handle.stats.accepted > 10
        several = [ask(scheduler, [*IDS, i], params) for i in range(5)]
        assert [x.wait() for x in several] == [alone(engine, [*IDS, i], params)[0] for i in range(5)]
    finally:
        scheduler.close()
    session = model.session()
    said = [i for piece in model.generate(IDS, SETTINGS[0], session=session) for i in piece.ids]
    more = [*IDS, *said, *b"and?"]
    second = model.generate(more, SETTINGS[0], session=session)
    list(second)
    assert second.text == alone(engine, more, SETTINGS[0])[0]
    assert second.stats.accepted > 0


def test_its_cache_holds_a_beginning_of_the_text(path):
    """Whatever was wrong, logits are those of a fresh cache."""
    small = where_drafts_pay(path, path).speculation.draft
    fresh = small.model
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 256, 90).tolist()
    assert small.read(ids) is None  # READ at a time
    for _ in range(30):
        logits = small.read(ids)
        assert logits is not None
        np.testing.assert_array_equal(logits, fresh.forward(ids, fresh.new_cache(512)))
        for _ in range(rng.integers(0, 4)):
            small.feed(int(rng.integers(0, 256)))
        ids += rng.integers(0, 256, rng.integers(1, 5)).tolist()
        del ids[: 0 if rng.random() < 0.9 else 1]
        if small._ids[:1] != ids[:1]:
            while small.read(ids) is None:
                pass


def test_a_long_text_is_read_near_its_end(path, monkeypatch):
    monkeypatch.setattr(draft_module, "WINDOW", 40)
    small = where_drafts_pay(path, path).speculation.draft
    ids = np.random.default_rng(1).integers(0, 256, 300).tolist()
    logits = small.read(ids)
    model = small.model
    np.testing.assert_array_equal(logits, model.forward(ids[-20:], model.new_cache(512)))
    assert small._begin == 280
    ids += [1, 2, 3]
    assert small.read(ids) is not None
    assert (small._begin, len(small._ids)) == (280, 23)
    ids += [300, 9, 8]  # the row of a picture
    assert small.read(ids) is not None
    assert small._ids == [9, 8]
    assert small.read([*ids, 300]) is None


def test_one_answer_at_a_time_has_it(path):
    small = where_drafts_pay(path, path).speculation.draft
    sampler = Sampler(SamplingParams(temperature=0), 259)
    first, second = ModelDrafter(small, sampler), ModelDrafter(small, sampler)

    def guess(drafter):
        source = drafter.guesses(IDS)
        found = list(itertools.islice(source, 2))
        source.close()
        return len(found)

    assert guess(first) == 2
    assert guess(second) == 0
    for _ in range(draft_module.IDLE):
        guess(second)
    assert guess(second) == 2  # the first one has not asked for long
    second.close(IDS)
    assert guess(first) == 2
    del first
    assert guess(ModelDrafter(small, sampler)) == 2


def other_vocabulary(tmp_path, monkeypatch, pieces, name="strange.gguf"):
    from tests.engine import tiny

    monkeypatch.setattr(tiny, "byte_pieces", lambda: pieces)
    return write_tiny(tmp_path / name)


def test_a_draft_model_of_another_vocabulary_is_refused_by_the_token_that_differs(path, tmp_path, monkeypatch):
    pieces = byte_pieces()
    pieces[40], pieces[41] = pieces[41], pieces[40]
    strange = other_vocabulary(tmp_path, monkeypatch, pieces)
    with pytest.raises(ValueError, match=r"strange cannot draft .*token 40 is '\)' there and '\(' here"):
        Engine.load(path, context=64, draft=strange)


def test_more_tokens_are_refused_but_for_padding(path, tmp_path, monkeypatch):
    from tests.engine import tiny

    for more, fine in (["<|think|>"], False), ([f"[PAD{i}]" for i in range(5)], True):
        monkeypatch.setattr(tiny, "SPECIAL", [*SPECIAL, *more])
        file = write_tiny(tmp_path / f"{len(more)}.gguf", seed=1)
        if fine:
            engine = where_drafts_pay(path, file)
            assert engine.generate(IDS, SETTINGS[1]).stats.drafted == 0
            assert [p.text for p in engine.generate(IDS, SETTINGS[1])]
        else:
            with pytest.raises(ValueError, match=r"260 tokens and this model 259; .*'<\|think\|>'"):
                Engine.load(path, context=64, draft=file)


def test_memory_is_planned_for_both(path, other, monkeypatch):
    from gangpao.engine.speculate.loading import open_draft
    from gangpao.text.tokenizer import Tokenizer

    large = GGUF.open(path)
    other_file = GGUF.open(other)
    small = open_draft(other_file, Tokenizer.from_gguf(large.metadata), ModelConfig.from_gguf(large))
    config = small.config
    both = memory.estimate(
        large, config, 512, "f16", draft=memory.draft_bytes(other_file, small.config, 512, "f16")
    ).total
    alone_ = memory.estimate(large, config, 512, "f16").total
    assert both - alone_ == alone_ - memory.PROCESS_BYTES  # they are of one size
    monkeypatch.setattr(memory.machine, "available_memory", lambda: both - 1)
    with pytest.raises(ValueError, match=r"Ways out: no draft model, which saves .* \(--draft none\)"):
        Engine.load(path, context=512, draft=other)
    monkeypatch.setattr(memory.machine, "available_memory", lambda: both)
    assert Engine.load(path, context=512, draft=other).speculation.draft.name == "small"


def test_a_copy_of_a_sampler_chooses_alike_and_changes_nothing():
    params = SamplingParams(temperature=1.0, seed=3, repetition_penalty=1.2, presence_penalty=0.5)
    one, two = Sampler(params, 50, [1, 2]), Sampler(params, 50, [1, 2])
    rows = np.random.default_rng(0).standard_normal((30, 50)).astype(np.float32)
    for i in range(0, 30, 3):
        ahead = one.copy()
        foreseen = [ahead.sample(row) for row in rows[i : i + 3]]
        assert foreseen == [one.sample(row) for row in rows[i : i + 3]] == [two.sample(row) for row in rows[i : i + 3]]
