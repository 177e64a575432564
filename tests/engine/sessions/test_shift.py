"""A full context loses its oldest turns, and what follows is what a fresh cache over the kept ids would say."""

import random

import numpy as np
import pytest

from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Request
from gangpao.engine.sessions.shift import ContextShift
from gangpao.engine.speculate.pool import Pools
from tests.engine.company import Listener

VOCAB = 1000
OPEN = (7, 8, 9)  # how a turn begins


def talk(rng: random.Random, head: int, turns: list[int]) -> list[int]:
    """Ids of a system message and of turns of these lengths."""
    ids = [rng.randrange(10, VOCAB) for _ in range(head)]
    for size in turns:
        ids += [*OPEN, *(rng.randrange(10, VOCAB) for _ in range(size - len(OPEN)))]
    return ids


def test_whole_turns_go_and_the_beginning_stays():
    ids = talk(random.Random(1), 20, [40, 30, 50, 30, 30, 20])
    shift = ContextShift(200, VOCAB, keep=20, opening=OPEN)
    kept = shift.fit(ids, room=1)
    assert kept[:20] == ids[:20]
    assert kept[20:] == ids[20 + shift.dropped :]
    assert shift.dropped == 40 + 30 + 50  # half of 180 on to the next turn
    assert (shift.whole, shift.turns) == (True, 3)
    assert ContextShift(400, VOCAB).fit(ids) == ids


def test_a_long_turn_is_cut_through_and_a_picture_is_not():
    ids = [*range(10, 20), *range(100, 300)]
    shift = ContextShift(150, VOCAB, keep=10, opening=OPEN)
    assert shift.fit(ids) == [*range(10, 20), *range(170, 300)]
    assert not shift.whole
    with_rows = [*range(10, 20), *range(100, 160), *range(VOCAB, VOCAB + 30), *range(200, 300)]
    assert ContextShift(150, VOCAB, keep=10).fit(with_rows) == [*range(10, 20), *range(200, 300)]


@pytest.mark.parametrize("seed", range(5))
def test_a_text_that_grows_is_cut_where_all_of_it_would_be(seed):
    """Token by token, with cut after cut, and the whole history at once: the same ids, so that its prefix is remembered."""
    rng = random.Random(seed)
    ids = talk(rng, 30, [rng.randrange(5, 60) for _ in range(60)])
    shift, text = ContextShift(256, VOCAB, keep=30, opening=OPEN), []
    for n, one in enumerate(ids, 1):
        text = shift.fit([*text, one])
        assert len(text) <= 256
        if n % 17 == 0:
            again = ContextShift(256, VOCAB, keep=30, opening=OPEN)
            assert again.fit(ids[:n]) == text
            assert again.dropped == shift.dropped == n - len(text)
    assert shift.dropped > 1000


def test_what_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match="nothing can be dropped"):
        ContextShift(50, VOCAB, keep=50).fit(range(10, 70))


def test_turns_are_read_off_the_template(engine):
    head = [{"role": "system", "content": "be brief"}]
    shift = engine.shift(head)
    ids = engine.prompt_with([*head, *({"role": r, "content": r} for r in ("user", "assistant", "user"))])
    assert tuple(ids[shift.keep : shift.keep + len(shift.opening)]) == shift.opening
    places = [i for i in range(len(ids)) if tuple(ids[i : i + len(shift.opening)]) == shift.opening]
    assert len(places) == 2
    assert places[0] == shift.keep
    assert (
        engine.tokenizer.decode(ids[: shift.keep], keep_special=True).rstrip("\n").endswith(("be brief", "<|im_end|>"))
    )


def long_answer(engine, ids, **options):
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=900, repetition_penalty=1.0)
    run = engine.generate(ids, params, shift=engine.shift(), **options)
    return run, [i for piece in run for i in piece.ids]


@pytest.fixture
def endless(engine, monkeypatch):
    monkeypatch.setattr(type(engine.tokenizer), "end_ids", frozenset())
    return engine


def test_an_answer_goes_on_and_its_next_token_is_that_of_a_fresh_cache(endless):
    session = endless.session()
    prompt = list(range(40, 140))
    run, said = long_answer(endless, prompt, session=session)
    assert len(said) == 900
    assert run.stats.dropped_tokens > 300
    assert run.finish_reason == "length"
    whole = [*prompt, *said]
    kept = [*whole[:4], *whole[4 + run.stats.dropped_tokens :]]
    assert session.ids == kept[: len(session.ids)]
    assert len(session.ids) >= len(kept) - 1
    row = endless.model.forward(session.ids[-1:], _shorter(session))
    assert np.array_equal(row, endless.model.forward(session.ids, endless.model.new_cache(512, endless.kv_dtype)))


def pooled(engine):
    """Ids of all answers in the newest pool."""
    return [i for i in list(engine.speculation.pools._pools.values())[-1]._ring if i >= 0]


def test_an_answer_goes_into_the_pool_whole(endless, scheduler, monkeypatch):
    """That part too which left the context."""
    monkeypatch.setattr(endless.speculation, "pools", Pools())
    prompt = list(range(40, 140))
    run, said = long_answer(endless, prompt)
    assert run.stats.dropped_tokens > 300
    assert pooled(endless) == said
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=900, repetition_penalty=1.0)
    listener = Listener()
    running = scheduler(batch=1, pools=lambda client: True)
    running.submit(Request(prompt, params, continues=False, client="key", shift=endless.shift()), listener)
    listener.wait()
    running.close()
    assert pooled(endless) == said


def _shorter(session):
    session.cache.truncate(len(session.ids) - 1)
    return session.cache


def test_the_same_answer_with_drafts_and_without_and_in_company(endless, scheduler):
    prompt = [*range(40, 90), *range(40, 90)]
    _, said = long_answer(endless, prompt)
    assert long_answer(endless, prompt, speculate=False)[1] == said
    running = scheduler(batch=3, pool_tokens=700)  # too little for all three: they give way to one another
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=900, repetition_penalty=1.0)
    listeners = []
    for _ in range(3):
        listener = Listener()
        listener.handle = running.submit(Request(prompt, params, continues=False, shift=endless.shift()), listener)
        listeners.append(listener)
    for listener in listeners:
        listener.wait()
        assert [i for piece in listener.pieces for i in piece.ids] == said
        assert listener.handle.stats.dropped_tokens > 300
    assert running.counters.preempted > 0


def test_a_prompt_that_is_too_long_is_cut_and_the_handle_says_so(endless, scheduler):
    prompt = [random.Random(3).randrange(256) for _ in range(1500)]
    run = endless.generate(prompt, SamplingParams(temperature=0, max_tokens=3), shift=endless.shift())
    list(run)
    assert run.stats.prompt_tokens + run.stats.dropped_tokens == 1500
    with pytest.raises(ValueError, match="1500 tokens"):
        endless.generate(prompt)


def test_without_a_shift_a_full_context_ends_the_answer(endless):
    run = endless.generate(list(range(40, 140)), SamplingParams(temperature=1.0, seed=5, max_tokens=900))
    said = [i for piece in run for i in piece.ids]
    assert (len(said), run.finish_reason, run.stats.dropped_tokens) == (413, "length", 0)
