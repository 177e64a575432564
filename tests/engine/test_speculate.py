"""Drafts save steps, change nothing, and cost little."""

import threading

from gangpao.engine.sample import SamplingParams
from gangpao.engine.speculate import READ, SIZES, Drafter
from tests.engine.company import GREEDY, alone, ask


def test_drafts_save_steps_and_change_nothing(engine, scheduler):
    ids = [*b"abcdefghij" * 6]
    # A bias makes the model repeat itself; it has to say the end by chance.
    params = SamplingParams(temperature=1.0, seed=8, repetition_penalty=1.0, max_tokens=200, logit_bias={97: 40.0})
    running = scheduler(batch=1)
    drafted = ask(running, ids, params)
    plain = ask(running, ids, params, speculate=False)
    assert drafted.wait() == plain.wait() == alone(engine, ids, params)[0]
    stats = drafted.handle.stats
    assert 0 < stats.accepted <= stats.drafted
    assert plain.handle.stats.drafted == 0
    assert running.counters.steps < 1.7 * 200


def test_drafts_in_a_conversation(engine):
    """With and without drafts the same answer, and after it the cache holds nothing but what was said."""
    params = SamplingParams(temperature=1.0, seed=8, repetition_penalty=1.0, max_tokens=100, logit_bias={97: 40.0})
    ids, texts = [*b"abcdefghij" * 6], []
    for speculate in (False, True):
        session = engine.session()
        first = engine.generate(ids, params, session=session, speculate=speculate)
        said = [i for piece in first for i in piece.ids]
        assert [*ids, *said][: len(session.ids)] == session.ids
        second = engine.generate([*ids, *said, *b"now?"], GREEDY, session=session, speculate=speculate)
        list(second)
        assert second.stats.cached_tokens == len(ids) + len(said) - 1
        texts.append((first.text, second.text, first.stats.decode_steps))
        assert bool(first.stats.accepted) == speculate
    assert texts[0] == texts[1]


def test_drafts_stop_where_they_do_not_pay():
    ids = [1, 2, 3, 4, 1, 2, 3]
    drafter = Drafter(ids)
    assert drafter.propose(ids, 10, 1)[:1] == [4]
    assert drafter.propose(ids, 1, 1) == [4]
    for _ in range(20):
        drafter.learn(3, 0)
    assert drafter.propose(ids, 10, 1) == []
    tries = sum(bool(drafter.propose(ids, 10, 1)) for _ in range(100))
    assert 1 <= tries <= 5
    for _ in range(30):
        drafter.learn(3, 3)
    assert len(drafter.propose(ids, 10, 1)) > 1
    assert len(drafter.propose(ids, 10, 8)) <= len(drafter.propose(ids, 10, 1))


def test_a_prompt_is_looked_through_only_for_drafts_that_are_due_and_in_parts(monkeypatch):
    read: list[int] = []
    inner = Drafter._index

    def index(self, ids, until):
        before = self._indexed
        inner(self, ids, until)
        read.append(self._indexed - before)

    monkeypatch.setattr(Drafter, "_index", index)
    ids = [*range(READ + 100), *range(READ + 50, READ + 60)]
    drafter = Drafter(ids)
    assert drafter.propose(ids, 10, 16) == []  # sixteen answers in a step leave nothing to gain
    assert read == []
    assert drafter.propose(ids, 10, 1) == []  # what would be right stands behind what is read by now
    assert drafter.propose(ids, 10, 1)[:1] == [READ + 60]
    assert drafter.propose(ids, 10, 1)[:1] == [READ + 60]
    assert read[0] == READ
    assert sum(read) == len(ids) - min(SIZES)


def test_a_text_that_repeats_itself_is_foreseen_further_than_its_period():
    ids = [5] * 40
    drafter = Drafter(ids)
    for _ in range(30):
        drafter.learn(6, 6)
    drafter.propose(ids, 10, 1)
    ids += [5] * 7
    assert drafter.propose(ids, 10, 1) == [5] * 6


def test_submitting_reads_no_prompt(engine, scheduler, monkeypatch):
    """It is called in the event loop: what takes long is the scheduler's."""
    threads: set[str] = set()
    inner = Drafter._index
    monkeypatch.setattr(Drafter, "_index", lambda *a: (threads.add(threading.current_thread().name), inner(*a))[1])
    running = scheduler(batch=1)
    ask(running, [*b"abcdefghij" * 6]).wait()
    assert threads == {running._thread.name}
