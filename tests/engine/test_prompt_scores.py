"""Log-probabilities of a prompt are those of its tokens one by one, to the last bit, however the prompt went through."""

import random

import numpy as np
import pytest

from gangpao.engine.sample import SamplingParams, logprobs_of
from gangpao.engine.scheduler import Request
from tests.engine.company import GREEDY, Listener, alone, ask
from tests.engine.test_scheduler import prompts


def scored(scheduler, ids, alternatives=2, **options):
    return ask(scheduler, ids, prompt_logprobs=alternatives, **options)


def one_by_one(engine, ids, alternatives=2) -> list:
    logits = engine.model.forward(ids, engine.model.new_cache(engine.context), all_logits=True)
    return [None, *(logprobs_of(row, i, alternatives) for row, i in zip(logits, ids[1:], strict=False))]


def test_in_any_company_the_same_scores_and_answers(engine, scheduler):
    """Prompts with common beginnings, some with an answer, some without, some not scored at all."""
    rng = random.Random(1)
    running = scheduler(batch=5)
    asked = []
    for ids in prompts(rng, 12):
        want, only = rng.choice([None, 0, 2, 2]), rng.choice([True, False])
        asked.append((ids, want, only, scored(running, ids, want, prompt_only=only)))
    for ids, want, only, listener in asked:
        text = listener.wait()
        assert listener.handle.prompt_logprobs == ([] if want is None else one_by_one(engine, ids, want))
        assert text == ("" if only else alone(engine, ids)[0])
        assert listener.handle.finish_reason == ("length" if only else alone_reason(engine, ids))
    assert running.counters.cached_tokens > 0


def alone_reason(engine, ids):
    run = engine.generate(ids, GREEDY)
    list(run)
    return run.finish_reason


@pytest.mark.parametrize("length", [1, 2, 64, 65, 128, 300, 511])
def test_every_length(engine, scheduler, length):
    ids = [i * 7 % 256 for i in range(length)]
    running = scheduler()
    for _ in range(2):  # the second time from what is remembered
        listener = scored(running, ids, prompt_only=True)
        assert listener.wait() == ""
        assert listener.handle.prompt_logprobs == one_by_one(engine, ids)
        assert listener.pieces[-1].ids == ()


def test_what_is_remembered_is_used_as_far_as_it_suffices(engine, scheduler):
    running = scheduler()
    begin, more = list(range(200)), [7, 8, 9]

    def cached(ids, alternatives) -> int:
        listener = scored(running, ids, alternatives, prompt_only=True)
        listener.wait()
        assert listener.handle.prompt_logprobs == one_by_one(engine, ids, alternatives)
        return listener.handle.stats.cached_tokens

    ask(running, begin).wait()
    assert cached([*begin, *more], 1) == 0  # keys and values are there, log-probabilities are not
    assert (
        cached([*begin, 1, 2], 1) >= 191
    )  # whole pages, without the last token: its row says what the next one is worth
    assert cached([*begin, 3], 0) >= 191  # fewer alternatives are a part of it
    assert cached([*begin, 3], 5) == 0
    assert cached([*begin, *more], 5) >= 191
    assert ask(running, [*begin, *more]).wait() == alone(engine, [*begin, *more])[0]


def test_who_gave_way_keeps_what_it_has(engine, scheduler, monkeypatch):
    """Several in pages for barely one, half of them with answers."""
    running = scheduler(batch=4, pool_tokens=512)
    monkeypatch.setattr(running.pool, "can_allocate", lambda tokens: True)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, logit_bias={256: -100, 258: -100})
    asked = [[(i * k + 3) % 256 for i in range(180)] for k in (7, 11, 13, 17)]
    listeners = [scored(running, ids, params=params, prompt_only=i % 2 == 1) for i, ids in enumerate(asked)]
    for ids, listener in zip(asked, listeners, strict=True):
        listener.wait()
        assert listener.handle.prompt_logprobs == one_by_one(engine, ids)
    assert running.counters.preempted > 0


def test_the_head_sees_only_the_rows_that_are_asked_for(engine, scheduler, monkeypatch):
    rows = []
    inner = engine.model._output.at_once
    monkeypatch.setattr(
        engine.model._output,
        "at_once",
        lambda states, wanted, *more: rows.append(len(wanted)) or inner(states, wanted, *more),
    )
    running = scheduler()
    scored(running, list(range(100)), prompt_only=True).wait()
    assert sum(rows) == 99
    assert max(rows) <= 16
    rows.clear()
    ask(running, [5] * 100, prompt_only=True).wait()
    assert rows == []


def test_a_broken_model_is_an_error_and_not_a_nan(engine, scheduler, monkeypatch):
    inner = engine.model._output.at_once
    monkeypatch.setattr(
        engine.model._output, "at_once", lambda *asked: np.multiply(out := inner(*asked), np.nan, out=out)
    )
    with pytest.raises(ValueError, match="not finite"):
        scored(scheduler(), [1, 2, 3], prompt_only=True).wait()


def test_a_request_without_an_answer_can_be_cancelled(scheduler):
    running = scheduler()
    listener = Listener()
    handle = running.submit(
        Request([i % 256 for i in range(400)], GREEDY, prompt_logprobs=0, prompt_only=True), listener
    )
    handle.cancel()
    running.close()
    assert running.counters.cancelled + running.counters.finished == 1
