"""Memory while ten thousand requests go by: what a request took is given back, and the journal keeps a line of it."""

import os
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from gangpao.engine.generate import Engine
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.harness import Harness
from gangpao.evaluate.models.load import facts_of
from tests.engine.tiny import write_tiny

CONTEXTS, CHOICES = 2_500, 4
MOST_GROWTH = 12 << 20  # bytes of the last 7,500 requests; their answers in memory are some 4 of them


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_memory_is_flat_over_ten_thousand_requests(tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", context=512)
    words = [f"w{i * 7919 % 1013}" for i in range(40)]
    requests = [
        Instance(
            "loglikelihood", {}, (f"{number} {' '.join(words[number % 30 :])}", f" {choice} {number % 97}"), choice
        )
        for number in range(CONTEXTS)
        for choice in range(CHOICES)
    ]
    seen = {}

    def progress(what, done, total):
        assert (what, total) == ("choices", CONTEXTS * CHOICES)
        seen[done] = resident()

    model = EngineModel(Engine.load(path, context=512, num_threads=1), facts_of("tiny", path))
    with Journal(tmp_path / "run", {"of": "flat"}) as journal:
        found = Harness(model, journal, progress).loglikelihood(requests)
    model.close()
    assert len(found) == CONTEXTS * CHOICES
    assert max(seen.values()) - seen[CONTEXTS] < MOST_GROWTH, {done: seen[done] >> 20 for done in list(seen)[::500]}
