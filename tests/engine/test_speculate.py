"""Drafts save steps, change nothing, and cost little."""

import threading

from gangpao.engine.sample import SamplingParams
from gangpao.engine.speculate.speculation import TextDrafter
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


def test_submitting_reads_no_prompt(engine, scheduler, monkeypatch):
    """It is called in the event loop: what takes long is the scheduler's."""
    threads: set[str] = set()
    inner = TextDrafter._index
    monkeypatch.setattr(TextDrafter, "_index", lambda *a: (threads.add(threading.current_thread().name), inner(*a))[1])
    running = scheduler(batch=1)
    ask(running, [*b"abcdefghij" * 6]).wait()
    assert threads == {running._thread.name}
