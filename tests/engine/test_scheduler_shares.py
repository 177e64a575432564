"""How unfinished prompts share a step: a short question does not wait for a long prompt, and a long prompt is not starved.

Counted in steps, not in seconds.
"""

from types import SimpleNamespace

import pytest

from gangpao.engine import scheduler as scheduler_module
from gangpao.engine.scheduler import Request, shares_of
from tests.engine.company import GREEDY, Listener, alone, ask


@pytest.mark.parametrize(
    ("left", "budget", "expected"),
    [
        ([1000], 256, [256]),
        ([10], 256, [10]),
        ([1000, 40], 256, [216, 40]),
        ([1000, 900, 40], 256, [64, 152, 40]),
        ([40, 1000], 256, [40, 216]),
        ([1000, 250], 256, [64, 192]),
        ([1000, 5, 5], 32, [22, 5, 5]),
        ([3, 3, 3], 8, [3, 3, 2]),
        ([1000, 30, 30], 32, [8, 24, 0]),
    ],
)
def test_shares(left, budget, expected):
    jobs = [SimpleNamespace(to_compute=n) for n in left]
    shares = shares_of([_Hashed(job) for job in jobs], budget)
    assert list(shares.values()) == expected
    assert sum(expected) == min(budget, sum(left))


class _Hashed:
    def __init__(self, job):
        self.to_compute = job.to_compute


@pytest.fixture
def steps(engine, monkeypatch):
    """Sizes of the segments of each step that was run; steps.during[i] is called while the i-th runs."""
    monkeypatch.setattr(scheduler_module, "CHUNK", 32)
    monkeypatch.setattr(scheduler_module, "CHUNK_BESIDE", 8)
    found = SimpleNamespace(sizes=[], during={})
    inner = engine.model.step

    def step(segments):
        found.sizes.append([len(s.ids) for s in segments])
        found.during.get(len(found.sizes), lambda: None)()
        return inner(segments)

    monkeypatch.setattr(engine.model, "step", step)
    return found


def test_a_short_question_waits_for_two_chunks_and_not_for_the_prompt_before_it(engine, scheduler, steps):
    running = scheduler(batch=4)
    long, short = [i * 7 % 256 for i in range(400)], [9, 8, 7, 6, 5]
    late = []
    steps.during[3] = lambda: late.append((ask(running, short), len(steps.sizes)))
    first = ask(running, long)
    first.wait()
    (answer, asked_in) = late[0]
    answer.wait()
    assert steps.sizes[asked_in] == [27, 5]  # the step right after: all of it, and the rest for the long one
    expected = [alone(engine, ids)[0] for ids in (long, short)]
    assert [first.wait(), answer.wait()] == expected


def test_short_questions_without_end_do_not_starve_a_long_prompt(scheduler, steps):
    running = scheduler(batch=3, queue=64)
    long = [i * 11 % 256 for i in range(300)]
    listeners = []

    def another():
        n = len(listeners)
        listeners.append(ask(running, [n % 256, 1, 2, n // 256, *range(30)], prompt_only=True))

    for i in range(1, 200):
        steps.during[i] = another
    ended_after = []  # counted by the scheduler's thread: it goes on while this one wakes up

    class Counting(Listener):
        def __call__(self, event):
            ended_after.append(len(steps.sizes))
            super().__call__(event)

    first = Counting()
    running.submit(Request(long, GREEDY, prompt_only=True), first)
    first.wait()
    at_most = 300 // (32 // scheduler_module.OLDEST_SHARE) + 2
    assert ended_after[-1] <= at_most
    steps.during.clear()
    for listener in listeners:
        listener.wait()
