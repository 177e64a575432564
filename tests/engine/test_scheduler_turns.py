"""Whose turn it is: by client, with a place that is kept, in a queue that is bounded."""

import random
import threading
import time

import pytest

from gangpao.engine import scheduler as batch_module
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Busy, Request
from gangpao.engine.sequences import AnswerSequence, Queue
from tests.engine.company import GREEDY, Listener, alone, ask


def test_a_long_prompt_does_not_silence_the_others(engine, scheduler, monkeypatch):
    """While a prompt of 400 tokens goes in, an answer gets a token in every step."""
    monkeypatch.setattr(batch_module, "CHUNK_BESIDE", 16)
    running = scheduler(batch=2)
    steps: list[list[int]] = []
    inner = running.engine.model.step

    def step(segments):
        steps.append([len(s.ids) for s in segments])
        return inner(segments)

    monkeypatch.setattr(running.engine.model, "step", step)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=100, repetition_penalty=1.0)
    first = ask(running, [1, 2, 3], params, speculate=False)
    while not first.pieces:
        time.sleep(0.001)
    second = ask(running, [i % 256 for i in range(400)], GREEDY)
    first.wait()
    second.wait()
    both = [s for s in steps if len(s) == 2]
    assert len(both) >= 400 // 16
    assert all(min(s) == 1 and max(s) <= 16 for s in both)


def test_clients_take_turns(engine, scheduler, monkeypatch):
    running = scheduler(batch=1)
    order: list[str] = []

    def named(name):
        inner = Listener()

        def listen(event):
            inner(event)
            if inner.ended.is_set():
                order.append(name)

        inner.listen = listen
        return inner

    waiting = [("a", named("a")) for _ in range(4)] + [("b", named("b")) for _ in range(2)]
    block = threading.Event()
    inner_step = running.engine.model.step
    monkeypatch.setattr(running.engine.model, "step", lambda s: (block.wait(30), inner_step(s))[1])
    for client, listener in waiting:
        running.submit(Request([1, 2], GREEDY, client=client), listener.listen)
    block.set()
    for _, listener in waiting:
        listener.wait()
    assert order == ["a", "a", "b", "a", "b", "a"] or order == ["a", "b", "a", "b", "a", "a"]


@pytest.mark.parametrize("clients", ["B", "ACDE"])
def test_a_large_prompt_is_passed_a_few_times_and_then_it_is_its_turn(engine, scheduler, clients):
    """Small requests come without end, of its own client or of others, and the pool holds no more than one context."""
    running = scheduler(batch=3, pool_tokens=512)
    rng = random.Random(3)
    params = SamplingParams(temperature=1.5, seed=1, max_tokens=40, logit_bias={256: -100, 258: -100})
    ended, large = [0], Listener()
    big = [rng.randrange(256) for _ in range(400)]

    def small(client):
        def listen(event):
            if isinstance(event, Exception) or event.finish_reason is None:
                return
            ended[0] += 1
            if not large.pieces and ended[0] < 100:
                small(client)
            if ended[0] == 4:
                running.submit(Request(big, GREEDY, client="B"), large)

        ids = [rng.randrange(256) for _ in range(60)]
        running.submit(Request(ids, params, client=client, speculate=False), listen)

    for client in clients * (4 // len(clients)):
        small(client)
    assert large.wait() == alone(engine, big)[0]
    running.close()
    assert (
        ended[0] <= 4 + 3 + 4 + batch_module.MAX_OVERTAKEN + 3
    )  # before it, running, before it in the round, passing, with it
    assert running.counters.finished == ended[0] + 1


def test_a_place_in_the_round_is_kept(engine):
    def job(client):
        return AnswerSequence(engine, Request([1], client=client), print)

    queue = Queue()
    a1, a2, b1, c1, c2 = jobs = [job(client) for client in "aabcc"]
    for one in jobs:
        queue.put(one)
    assert queue.take() is a1
    taken = [queue.take() for _ in range(3)]
    assert taken == [b1, c1, a2]
    for one in reversed(taken):
        queue.put_back(one)
    assert list(queue) == [b1, c1, c2, a2]
    b2, a1.started_at, b1.started_at = job("b"), 2.0, 1.0
    assert queue.take() is b1
    queue.put(b2)
    for one in (a1, b1):  # both had begun, b1 first, and gave way
        queue.put_back(one)
    assert (len(queue), list(queue)) == (6, [b1, a1, c1, c2, a2, b2])
    a1.handle.cancel()
    assert queue.drop_cancelled() == 1
    assert [queue.take() for _ in range(6)] == [b1, c1, a2, b2, c2, None]


def test_the_speed_of_a_prompt_is_without_its_wait(engine, scheduler, monkeypatch):
    running = scheduler(batch=1)
    inner = running.engine.model.step
    block = threading.Event()
    monkeypatch.setattr(running.engine.model, "step", lambda s: (block.wait(30), inner(s))[1])
    first, second = ask(running, [1, 2, 3]), ask(running, [9] * 100)
    block.set()
    first.wait()
    second.wait()
    stats = second.handle.stats
    assert first.handle.stats.decode_s < stats.queue_s == second.handle.queue_s < stats.ttft_s
    assert stats.prefill_tps == pytest.approx(100 / (stats.ttft_s - stats.queue_s))


def test_the_queue_is_bounded_and_says_when_to_come_back(engine, scheduler, monkeypatch):
    running = scheduler(batch=1, queue=2)
    block = threading.Event()
    inner = running.engine.model.step
    monkeypatch.setattr(running.engine.model, "step", lambda s: (block.wait(30), inner(s))[1])
    first = ask(running, [1, 2, 3])
    while running.counters.running == 0:
        time.sleep(0.001)
    rest = [ask(running, [1, 2, 3]), ask(running, [4, 5])]
    with pytest.raises(Busy) as caught:
        ask(running, [6])
    assert 1.0 <= caught.value.retry_after <= 120.0
    assert running.counters.refused == 1
    block.set()
    for listener in [first, *rest]:
        listener.wait()
