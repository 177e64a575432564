"""A server's prefixes in a folder: found by the next process, damaged ones computed again, never more than the budget."""

import logging
import random
import time

import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.sessions.store import PrefixFolder
from tests.engine import hybrid
from tests.engine.company import alone, ask
from tests.engine.pictures.linear_sight import LinearSight, picture
from tests.engine.tiny import write_tiny

SYSTEM = [random.Random(7).randrange(256) for _ in range(300)]


@pytest.fixture
def start(engine, tmp_path):
    """start(engine, budget) makes a scheduler that keeps prefixes in one folder; all end with the test."""
    made = []

    def begin(one=engine, budget=10**9) -> Scheduler:
        made.append(Scheduler(one, batch=3, prefixes=PrefixFolder(tmp_path / "p", budget)))
        return made[-1]

    yield begin
    for one in made:
        one.close(finish=False)


def pages(folder):
    return sorted(folder.glob("p/??/*.page"))


def asked(running, question):
    listener = ask(running, [*SYSTEM, *question])
    listener.wait()
    return [i for p in listener.pieces for i in p.ids], listener.handle.stats.cached_tokens


def test_the_next_process_begins_with_it(engine, start, tmp_path):
    first = start()
    assert asked(first, [1, 2, 3])[1] == 0
    first.close()
    assert len(pages(tmp_path)) >= 300 // 64
    second = start()
    for question in ([1, 2, 3], [9, 8]):
        ids, cached = asked(second, question)
        assert ids == alone(engine, [*SYSTEM, *question])[1]
        assert cached >= 256
    assert second.store.read_pages == 4


def test_what_is_asked_for_twice_is_written_at_once(start, tmp_path):
    running = start()
    asked(running, [1])
    assert pages(tmp_path) == []
    asked(running, [2])
    until = time.monotonic() + 10
    while len(pages(tmp_path)) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(pages(tmp_path)) == 4


def test_a_damaged_page_is_told_and_computed_again(engine, start, tmp_path, caplog):
    first = start()
    asked(first, [1])
    first.close()
    for number, path in enumerate(pages(tmp_path)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: -number or None])
    with caplog.at_level(logging.WARNING):
        ids, cached = asked(start(), [1])
    assert cached == 0
    assert "damaged" in caplog.text
    assert ids == alone(engine, [*SYSTEM, 1])[1]


def test_another_model_finds_nothing(start, tmp_path):
    first = start()
    asked(first, [1])
    first.close()
    other = Engine.load(write_tiny(tmp_path / "o.gguf", seed=1), context=512, num_threads=1)
    ids, cached = asked(start(other), [1])
    assert (ids, cached) == (alone(other, [*SYSTEM, 1])[1], 0)


def test_the_folder_keeps_to_its_budget(start, tmp_path):
    running = start(budget=5 * 20_000)
    for seed in range(6):
        text = [random.Random(seed).randrange(256) for _ in range(200)]
        for _ in range(2):
            ask(running, text).wait()
    running.close()
    found = pages(tmp_path)
    assert found
    assert sum(path.stat().st_size for path in found) <= 5 * 20_000


def test_a_model_with_states_says_that_it_keeps_none(start, tmp_path, caplog):
    path = hybrid.write(tmp_path / "h.gguf", hybrid.build(hybrid.hybrid()))
    with caplog.at_level(logging.WARNING):
        assert start(Engine.load(path, context=512, num_threads=1)).store is None
    assert "recurrent" in caplog.text


def test_a_folder_that_cannot_be_written_stops_nobody(engine, tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    running = Scheduler(engine, batch=1, prefixes=PrefixFolder(tmp_path / "file" / "p", 10**9))
    assert asked(running, [1])[0] == alone(engine, [*SYSTEM, 1])[1]
    running.close()


def test_a_prefix_with_a_picture_is_kept_up_to_it_and_the_others_whole(start, tmp_path):
    """At the end of a server: what is behind a picture has ids of this process only."""
    sees = Engine.load(write_tiny(tmp_path / "t.gguf"), context=512, num_threads=1, sight=LinearSight())
    running = start(sees)
    shown = picture(seed=1)
    rows = [i for part in sees.seeing.look(shown).rows.items() for i in range(part[0], sum(part))]
    hold = sees.see([shown])
    ask(running, [*SYSTEM[:70], *rows, *SYSTEM[70:200]], pictures=hold).wait()
    other = [random.Random(9).randrange(256) for _ in range(200)]
    ask(running, other).wait()
    running.close()
    assert not running.store._writer.is_alive()
    assert len(pages(tmp_path)) == 70 // 64 + 200 // 64
