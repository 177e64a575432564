"""The benchmark of many at once, without starting a server: who comes when with what, and what is counted."""

import asyncio

import pytest

from tests.engine.tiny import write_tiny
from tests.scripts import load


@pytest.fixture
def crowd():
    return load("crowd")


def test_the_crowd_is_the_same_every_time_and_half_of_it_shares(crowd, tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf")
    wanted = crowd.requests(path)
    assert wanted == crowd.requests(path)
    assert len(wanted) == crowd.STREAMS
    assert [r.at_s for r in wanted] == sorted(r.at_s for r in wanted)
    shared = {tuple(r.ids[: crowd.SHARED]) for r in wanted[1::2]}
    assert len(shared) == 1
    assert len({tuple(r.ids[:30]) for r in wanted[::2]}) > 1
    assert all(crowd.TOKENS[0] <= r.tokens <= crowd.TOKENS[1] for r in wanted)


def test_gaps_are_between_the_pieces_of_one_answer(crowd, monkeypatch):
    seen = iter([crowd.Seen(0.5, [0.1], 2), crowd.Seen(0.1, [0.01] * 99, 100), crowd.Seen(0.3, [], 1)])

    async def ask(http, url, request, stay):
        return next(seen)

    monkeypatch.setattr(crowd, "ask", ask)
    found = asyncio.run(crowd.crowd("http://127.0.0.1:1", [crowd.Request([1], 2, 0.0)] * 2, {}))
    assert found.gap_median == pytest.approx(10)
    assert found.gap_longest == pytest.approx(10)
    assert found.first_p99 == pytest.approx(300)
    assert found.ratio == pytest.approx(1)
