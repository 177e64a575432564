"""Many answers at once are the answers one by one: in any company, cut off or not, with drafts, constraints and little memory."""

import random
import threading
import time

import numpy as np
import pytest

from gangpao import catalog
from gangpao.engine import scheduler as batch_module
from gangpao.engine.cache import PAGE
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Busy, Request, Scheduler
from tests.engine.company import GREEDY, alone, ask


def settings(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.5]), repetition_penalty=rng.choice([1.0, 1.1]), seed=rng.randrange(1000),
        max_tokens=rng.randrange(1, 40), logprobs=rng.choice([None, 2]), top_k=rng.choice([0, 20]),
    )  # fmt: skip


def prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Prompts of all lengths, many with a common beginning, some repetitive so that drafts are right."""
    begin = [rng.randrange(256) for _ in range(200)]
    out = []
    for _ in range(count):
        tail = [rng.randrange(256) for _ in range(rng.randrange(1, 60))]
        out.append([*begin[: rng.choice([0, 30, 64, 130, 200])], *tail * rng.choice([1, 3])])
    return out


def test_in_any_company_the_same_answers(engine, scheduler):
    rng = random.Random(1)
    running = scheduler(batch=5)
    asked = []
    for ids in prompts(rng, 24):
        params = settings(rng)
        asked.append((ids, params, ask(running, ids, params, client=str(rng.randrange(3)))))
        time.sleep(rng.random() * 0.01)
    for ids, params, listener in asked:
        text = listener.wait()
        got = [i for p in listener.pieces for i in p.ids], [x for p in listener.pieces for x in p.logprobs]
        assert (text, *got) == alone(engine, ids, params)
        assert listener.handle.text == text
        assert listener.handle.finish_reason == listener.pieces[-1].finish_reason
    running.close()
    counters = running.counters
    assert counters.finished == counters.requests == 24
    assert counters.cached_tokens > 0
    assert counters.running == counters.waiting == 0
    assert running.pool.pages_used == running.pool.pages_kept


def test_with_little_memory_the_same_answers(engine, scheduler):
    """Eight answers in pages for barely one: they give way to one another and still say the same."""
    rng = random.Random(2)
    running = scheduler(batch=8, pool_tokens=512)
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=120, repetition_penalty=1.0)
    asked = [(ids, ask(running, ids, params)) for ids in prompts(rng, 10)]
    for ids, listener in asked:
        assert listener.wait() == alone(engine, ids, params)[0]
    assert running.counters.preempted > 0
    running.close()
    assert running.pool.pages_used == running.pool.pages_kept


def test_a_pool_of_one_context_serves_a_prompt_that_fills_it(engine, scheduler):
    """The second prompt begins in the middle of the last page, which cannot be copied: there is no page left."""
    running = scheduler(batch=2, pool_tokens=512)
    ids = [i % 251 for i in range(500)]
    for n in range(3):
        prompt = [*ids[: 490 - n], *(200 + n for _ in range(10 + n))]
        assert ask(running, prompt).wait() == alone(engine, prompt)[0]
    running.close()
    assert running.counters.preempted == 0
    assert running.counters.cached_tokens > 900


def test_a_prompt_that_another_is_computing_is_computed_once(engine, scheduler):
    running = scheduler(batch=8)
    ids = [i % 250 for i in range(300)]
    listeners = [ask(running, [*ids, n]) for n in range(6)]
    for n, listener in enumerate(listeners):
        assert listener.wait() == alone(engine, [*ids, n])[0]
    counters = running.counters
    assert counters.cached_tokens >= 5 * (300 // PAGE * PAGE)
    assert [x.handle.stats.cached_tokens >= 256 for x in listeners] == [False] + [True] * 5


def test_cancelled_answers_leave_at_once_and_harm_nobody(engine, scheduler):
    rng = random.Random(5)
    running = scheduler(batch=4, queue=200)
    long = SamplingParams(temperature=1.0, seed=2, max_tokens=150, repetition_penalty=1.0)
    kept, dropped = [], []
    for i, ids in enumerate(prompts(rng, 40)):
        listener = ask(running, ids, long, client=str(i % 3))
        (kept if i % 5 == 0 else dropped).append((ids, listener))
        if dropped and rng.random() < 0.7:
            dropped[rng.randrange(len(dropped))][1].handle.cancel()
    for _, listener in dropped:
        listener.handle.cancel()
    for ids, listener in kept:
        assert listener.wait() == alone(engine, ids, long)[0]
    running.close()
    counters = running.counters
    assert counters.finished + counters.cancelled == counters.requests == 40
    assert running.pool.pages_used == running.pool.pages_kept


class OnlyTokens:
    """A constraint: these tokens in this order, then the end."""

    def __init__(self, ids) -> None:
        self.left = list(ids)

    @property
    def finished(self) -> bool:
        return not self.left

    def apply(self, logits) -> None:
        kept = logits[self.left[0]]
        logits[:] = -np.inf
        logits[self.left[0]] = kept

    def accept(self, token: int) -> None:
        assert token == self.left.pop(0)

    def forced(self) -> list[int]:
        return list(self.left)


def test_a_constraint_is_kept_and_what_it_forces_takes_few_steps(engine, scheduler):
    running = scheduler(batch=2)
    words = b'{"answer": 42, "why": "because"}'
    listener = ask(running, [1, 2, 3], SamplingParams(max_tokens=100, seed=1), constraint=OnlyTokens(words))
    assert listener.wait() == words.decode()
    assert listener.handle.finish_reason == "stop"
    assert running.counters.steps < len(words) / 2


def test_a_constraint_without_a_way_out_ends_only_its_own_answer(engine, scheduler):
    class Nothing(OnlyTokens):
        def apply(self, logits) -> None:
            logits[:] = -np.inf

    running = scheduler(batch=2)
    bad = ask(running, [1, 2, 3], constraint=Nothing([1]))
    good = ask(running, [4, 5, 6])
    assert good.wait() == alone(engine, [4, 5, 6])[0]
    with pytest.raises(ValueError, match="not finite"):
        bad.wait()


def test_an_embedding_is_the_mean_of_the_last_states(engine, scheduler):
    running = scheduler(batch=3)
    rng = random.Random(6)
    texts = [[rng.randrange(256) for _ in range(n)] for n in (1, 5, 300)]
    found: list = [None] * len(texts)
    done = threading.Semaphore(0)
    talk = ask(running, [7, 8, 9])

    def listen(i):
        return lambda vector: (found.__setitem__(i, vector), done.release())

    for i, ids in enumerate(texts):
        running.embed(ids, listen(i))
    for _ in texts:
        assert done.acquire(timeout=30)
    talk.wait()
    pool = engine.model.new_pool(512)
    for ids, vector in zip(texts, found, strict=True):
        states = []
        cache = pool.new()
        for at in range(0, len(ids), 50):
            part = ids[at : at + 50]
            assert cache.reserve(len(part))
            states.append(engine.model.step([batch_module.Segment(cache, part, hidden=True)])[0])
        pool.free(cache.pages)
        np.testing.assert_allclose(vector, np.concatenate(states).mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_bug_in_a_step_reaches_everybody_and_stops_nobody_else(engine, scheduler, monkeypatch):
    running = scheduler(batch=2)
    inner = running.engine.model.step
    monkeypatch.setattr(running.engine.model, "step", lambda s: 1 / 0)
    bad = ask(running, [1, 2, 3])
    with pytest.raises(ZeroDivisionError):
        bad.wait()
    monkeypatch.setattr(running.engine.model, "step", inner)
    assert ask(running, [1, 2, 3]).wait() == alone(engine, [1, 2, 3])[0]
    assert running.counters.failed == 1


def test_an_embedding_that_gave_way_begins_anew(engine, scheduler, monkeypatch):
    running = scheduler(batch=2, pool_tokens=512)
    ids = [i * 7 % 256 for i in range(400)]
    found: list = []
    running.embed(ids, found.append)
    running.close()
    short = scheduler(batch=2, pool_tokens=512)
    monkeypatch.setattr(short.pool, "can_allocate", lambda tokens: True)
    talk = ask(short, list(range(130)), SamplingParams(temperature=1.0, seed=1, max_tokens=40, logit_bias={258: -100}))
    short.embed(ids, found.append)
    talk.wait()
    short.close()
    assert short.counters.preempted > 0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_an_error_in_a_step_with_drafts_ends_only_its_own_answer(engine, scheduler, monkeypatch):
    """The victim is told, nothing of it is remembered, and the scheduler lives on."""
    running = scheduler(batch=3)
    inner, spoilt = engine.model.step, []

    def step(segments):
        rows = inner(segments)
        for segment, found in zip(segments, rows, strict=True):
            if segment.logits > 1 and not spoilt:
                spoilt.append(len(segment.ids))
                found[:] = np.nan
        return rows

    monkeypatch.setattr(engine.model, "step", step)
    other = ask(running, [70, 71, 72, 99, 5], SamplingParams(temperature=0, max_tokens=200), speculate=False)
    ids = [*b"abc" * 30]
    bad = ask(running, ids, SamplingParams(temperature=1.0, seed=1, max_tokens=100, logit_bias={97: 40.0}))
    with pytest.raises(ValueError, match="not finite"):
        bad.wait()
    assert spoilt
    assert other.wait() == alone(engine, [70, 71, 72, 99, 5], SamplingParams(temperature=0, max_tokens=200))[0]
    again = ask(running, ids)
    assert again.wait() == alone(engine, ids)[0]
    assert again.handle.stats.cached_tokens == len(ids) // PAGE * PAGE  # what was shared before the error, no more
    assert running.alive
    running.close()
    assert (running.counters.failed, running.counters.finished) == (1, 2)
    assert running.pool.pages_used == running.pool.pages_kept


def test_who_is_taken_out_is_told_even_when_its_pages_cannot_be_taken(engine, scheduler, monkeypatch):
    running = scheduler(batch=2)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(engine.model, "step", lambda s: 1 / 0)
    monkeypatch.setattr(running.pool, "release", lambda cache: [][0])
    with pytest.raises(ZeroDivisionError):
        ask(running, [1, 2, 3]).wait()
    running._thread.join(30)
    assert not running.alive


def test_a_listener_that_is_gone_stops_nobody(engine, scheduler):
    running = scheduler(batch=2)

    def gone(event):
        raise RuntimeError("Event loop is closed")

    running.embed([1, 2, 3], gone)
    running.submit(Request([1, 2, 3], GREEDY), gone)
    assert ask(running, [4, 5, 6]).wait() == alone(engine, [4, 5, 6])[0]
    running.close()
    assert running.counters.failed == 0


def test_closing_finishes_what_was_started(engine, scheduler):
    running = scheduler(batch=1)
    listeners = [ask(running, [1, 2, n]) for n in range(4)]
    running.close()
    assert [x.wait() for x in listeners] == [alone(engine, [1, 2, n])[0] for n in range(4)]
    with pytest.raises(Busy):
        ask(running, [1])
    hurried = scheduler(batch=1)
    late = [ask(hurried, [1, 2, n], SamplingParams(max_tokens=400, temperature=1.0)) for n in range(4)]
    hurried.close(finish=False)
    assert any(x.error for x in late)
    assert all(x.ended.is_set() for x in late)


def _texts(engine, running, count, params):
    """`count` questions about the same long text, all at once, and how long that took."""
    long = "The library opens at nine and closes at five. " * 8
    ids = [
        engine.template.encode(engine.tokenizer, [{"role": "user", "content": f"{long}\nQuestion {n}: when?"}])
        for n in range(count)
    ]
    listeners = [ask(running, x, params, stop=engine.template.stop) for x in ids]
    return ids, [x.wait() for x in listeners]


def test_real_model_in_company(monkeypatch):
    """R10 on real weights: greedy answers together are those one by one."""
    installed = catalog.installed()
    if "smollm2-135m" not in installed:
        pytest.skip("smollm2-135m is not installed: gangpao pull smollm2-135m")
    engine = Engine.load(catalog.resolve("smollm2-135m"), context=1024)
    running = Scheduler(engine, batch=8)
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=8)
    ids, texts = _texts(engine, running, 5, params)
    running.close()
    for prompt, text in zip(ids, texts, strict=True):
        run = engine.generate(prompt, params, stop=engine.template.stop)
        list(run)
        assert run.text == text
    assert running.counters.cached_tokens > 3 * 64
