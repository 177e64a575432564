"""The search of the head changes nothing but the time."""

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.head.output import Output
from gangpao.engine.head.two_pass import PAUSES, TOO_MANY, _Habit
from gangpao.engine.sample import GREEDY, MOST, MOST_KNOWN, Need, Sampler, SamplingParams
from gangpao.engine.scheduler import Request, Scheduler
from tests.engine.company import Listener

PARAMS = {
    "greedy": {"temperature": 0.0},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    "greedy, bias": {"temperature": 0.0, "logit_bias": {284: 6.0, 30: -100.0}},
    "drawn": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3},
    "drawn, penalties": {"temperature": 1.2, "top_k": 7, "repetition_penalty": 1.2, "presence_penalty": -0.5, "seed": 4},
    "drawn from all": {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02, "seed": 5},
    "with logprobs": {"temperature": 0.0, "logprobs": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(model_path):
    return Engine.load(model_path("smollm2-135m"), context=1024, num_threads=2)


@pytest.fixture
def without_search(monkeypatch):
    """What runs inside has all logits."""
    inner = Output.logits

    def use() -> None:
        monkeypatch.setattr(
            Output,
            "logits",
            lambda self, states, rows, needs, mixes: inner(self, states, rows, [None] * len(rows), mixes),
        )

    return use


def prompt(engine):
    question = "Repeat this three times, then explain it: the cat sat on the mat, and the dog sat on the log."
    return engine.template.encode(engine.tokenizer, [{"role": "user", "content": question}])


def alone(engine, settings, speculate):
    params = SamplingParams(max_tokens=70, **settings)
    generation = engine.generate(prompt(engine), params, speculate=speculate, pool=False)
    return [(piece.text, piece.logprobs) for piece in generation]


@pytest.mark.parametrize("speculate", [False, True])
def test_answers_are_the_same_with_and_without_the_search(engine, without_search, speculate):
    found = {name: alone(engine, settings, speculate) for name, settings in PARAMS.items()}
    assert engine.model._output.spared > 0 or engine.model._output._two_pass is not None
    without_search()
    for name, settings in PARAMS.items():
        assert found[name] == alone(engine, settings, speculate), name


def test_answers_in_company_are_the_same(engine, without_search):
    ids = prompt(engine)

    def together():
        running = Scheduler(engine, batch=len(PARAMS))
        try:
            listeners = []
            for settings in PARAMS.values():
                listeners.append(Listener())
                running.submit(Request(ids, SamplingParams(max_tokens=40, **settings)), listeners[-1])
            return [listener.wait() for listener in listeners]
        finally:
            running.close(finish=False)

    found = together()
    without_search()
    assert found == together()


def test_a_search_reads_less_than_the_head(engine, monkeypatch):
    model = engine.model
    monkeypatch.setattr(model, "_output", Output(model.config, model.weights))
    cache = model.new_cache(256)
    logits = model.forward(prompt(engine), cache)
    left_out = []
    for _ in range(80):
        logits = model.forward([int(logits.argmax())], cache, need=GREEDY)
        left_out.append(np.isneginf(logits).mean())
    assert np.median(left_out) > 0.5
    assert model._output.spared > 0.15 * model.weights.head.nbytes
    assert model.bytes_per_token == model.nbytes - model._output.spared


def test_states_that_are_no_numbers_are_not_learned_from(engine):
    model = engine.model
    output = Output(model.config, model.weights)
    states = np.full((16, model.config.hidden_size), np.nan, np.float32)
    for _ in range(3):
        assert np.isnan(output.logits(states, range(16), [GREEDY] * 16, [()] * 16)).any()
    states = np.random.default_rng(0).normal(size=states.shape).astype(np.float32)
    full = output.logits(states, range(16), [None] * 16, [()] * 16)
    for _ in range(3):
        found = output.logits(states, range(16), [GREEDY] * 16, [()] * 16)
        np.testing.assert_array_equal(found.argmax(1), full.argmax(1))


def test_a_need_says_what_a_choice_looks_at():
    def need(ahead=(), **settings):
        sampler = Sampler(SamplingParams(**settings), 1000, [5, 6])
        sampler.accept(7)
        found = sampler.need(ahead)
        return None if found is None else (found.count, sorted(found.known.tolist()))

    assert need(temperature=0.0) == (1, [])
    assert need(temperature=0.0, top_k=50) == (1, [])
    assert need(top_k=50) == (50, [])
    assert need(top_k=50, repetition_penalty=1.1) == (50, [5, 6, 7])
    assert need([8], top_k=50, repetition_penalty=1.1) == (50, [5, 6, 7, 8])
    assert need([8], temperature=0.0, presence_penalty=1.0, logit_bias={9: 1.0}) == (1, [7, 8, 9])
    assert need() is None
    assert need(top_k=MOST + 1) is None
    assert Need.of(1, range(MOST_KNOWN + 1)) is None


def test_what_does_not_pay_is_left_off_for_a_while_and_then_longer():
    habit = _Habit(TOO_MANY)

    def searches_until_pause():
        for count in range(1000):
            if not habit.searches():
                return count
            habit.saw(1.0)
        return None

    assert searches_until_pause() < 10
    assert 1 + next(i for i in range(10_000) if habit.searches()) == PAUSES[0] - 1
    for _ in range(20_000):
        if habit.searches():
            habit.saw(1.0)
    assert habit.pause == PAUSES[1]
    good = _Habit(TOO_MANY)
    for _ in range(1000):
        assert good.searches()
        good.saw(TOO_MANY / 2)
