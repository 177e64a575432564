"""Whatever the gate decides, the text is the plain one: greedy, and drawn with a seed; real models, many prompts, gates at random.

A text that is the same for every seed is distributed as it was: no test of distributions says more.
"""

import itertools
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.speculate.speculation import MAX_DRAFT, Speculator
from tests.engine.company import ask

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def random_gates(monkeypatch):
    """Proposals of random length from all drafters, some of their tokens replaced by others."""
    rng = random.Random(7)
    counts = []

    def propose(self, ids, room, company=None):
        most = min(room, rng.choice([0, 0, 1, 2, 3, 5, MAX_DRAFT]))
        drafters = [*self._drafters, *([self._model] if self._model else [])]
        source = rng.choice(drafters).guesses(ids)
        self._checked = list(itertools.islice(source, most))
        source.close()
        drafts = [g.token if rng.random() < 0.9 else rng.choice(ids) for g in self._checked]
        if not drafts and rng.random() < 0.3:
            drafts = [rng.choice(ids) for _ in range(most)]
            self._checked = []
        counts.append(len(drafts))
        return drafts

    monkeypatch.setattr(Speculator, "propose", propose)
    monkeypatch.setattr(Speculator, "learn", lambda self, right: None)
    return counts


def settings(i):
    """Half of the answers greedy."""
    if i % 2 == 0:
        return SamplingParams(temperature=0, repetition_penalty=1.0 + 0.1 * (i % 3), max_tokens=40, logprobs=i % 3)
    return SamplingParams(
        temperature=0.4 + 0.3 * (i % 4), top_k=40 * (i % 3), top_p=0.95, seed=i, max_tokens=40, logprobs=1
    )


def paragraphs(count):
    """Real text, English and Chinese, of this project's documents."""
    texts = [
        part
        for path in sorted(DOCS.glob("*.md"))
        for part in re.split(r"\n\n+", path.read_text(encoding="utf-8"))
        if 200 < len(part) < 700 and "|" not in part
    ]
    return random.Random(1).sample(texts, count)


def said(generation):
    pieces = list(generation)
    return generation.text, [i for p in pieces for i in p.ids], [x for p in pieces for x in p.logprobs]


def check(engine, prompts, tokens=40):
    """Each prompt plain and with drafts: text, ids and log-probabilities are the same to the last bit."""
    drafted = accepted = 0
    for i, text in enumerate(prompts):
        ids = engine.prompt_with([{"role": "user", "content": f"{'Repeat' if i % 3 else 'Summarize'}: {text}"}])
        params = replace(settings(i), max_tokens=tokens)
        generation = engine.generate(ids, params, stop=engine.template.stop)
        found = said(generation)
        assert found == said(engine.generate(ids, params, stop=engine.template.stop, speculate=False)), text
        drafted, accepted = drafted + generation.stats.drafted, accepted + generation.stats.accepted
    assert 0 < accepted < drafted


def test_random_gates_on_a_tiny_model(engine, random_gates):
    """In the scheduler, three at a time."""
    rng = random.Random(3)
    scheduler = Scheduler(engine, batch=3, pools=lambda client: True)
    try:
        asked = []
        for i in range(12):
            ids = [rng.randrange(20) for _ in range(30)]
            asked.append((ids, settings(i), ask(scheduler, ids, settings(i), client=str(i % 2))))
        for ids, params, listener in asked:
            listener.wait()
            got = [i for p in listener.pieces for i in p.ids], [x for p in listener.pieces for x in p.logprobs]
            text, *plain = said(engine.generate(ids, params, speculate=False))
            assert (listener.handle.text, *got) == (text, *plain)
    finally:
        scheduler.close()
    assert max(random_gates) > 5


def test_random_gates_on_a_real_model(random_gates, model_path):
    check(Engine.load(model_path("smollm2-135m"), context=512, num_threads=1), paragraphs(3), tokens=16)


@pytest.mark.slow
def test_two_hundred_prompts_with_random_gates(random_gates, model_path):
    check(Engine.load(model_path("smollm2-135m"), context=1024), paragraphs(200))


@pytest.mark.slow
def test_two_hundred_prompts_as_the_gate_decides(model_path):
    check(Engine.load(model_path("smollm2-135m"), context=1024), paragraphs(200))


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["random", "own"])
def test_a_draft_model_of_the_same_family(gates, request, model_path):
    if gates == "random":
        request.getfixturevalue("random_gates")
    small = model_path("qwen2.5-coder-0.5b")
    check(Engine.load(model_path("qwen2.5-coder-1.5b"), context=1024, draft=small), paragraphs(24))
