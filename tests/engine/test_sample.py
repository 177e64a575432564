"""The sampler against a slow reference that sorts everything, its bounds, and its speed on a real vocabulary."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao import catalog
from gangpao.engine import sample
from gangpao.engine.sample import (
    REPETITION_WINDOW,
    Sampler,
    SamplingParams,
    keep_min_p,
    keep_top_p,
    largest,
    logprobs_of,
    penalize,
    recommended_in,
)
from tests.core_speed import seconds_of
from tests.engine.fakes import fake_engine

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def logits_of(seed: int, size: int, ties: bool = False) -> np.ndarray:
    out = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 4
    return np.round(out) if ties else out


def reference_filter(logits, temperature, top_k, top_p, min_p):
    """Sort the whole vocabulary, then cut: the definition, with no shortcut."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[: top_k or len(order)]
    weights = [math.exp((float(logits[i]) - float(logits[order[0]])) / temperature) for i in order]
    total, mass, kept = sum(weights), 0.0, []
    for i, w in zip(order, weights, strict=True):
        kept.append(i)
        mass += w
        if top_p < 1 and mass >= top_p * total:
            break
    floor = min_p * weights[0]
    return sorted(i for i, w in zip(order, weights, strict=True) if i in set(kept) and w >= floor)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 900),
    ties=st.booleans(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.1, 0.51, 0.803, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.0501, 0.31]),
)
@settings(max_examples=150, deadline=None)
def test_filters_equal_the_reference(seed, size, ties, temperature, top_k, top_p, min_p):
    logits = logits_of(seed, size, ties)
    ids = largest(logits, top_k or size)
    ids = keep_min_p(logits, keep_top_p(logits, ids, temperature, top_p), temperature, min_p)
    assert ids.tolist() == reference_filter(logits, temperature, top_k, top_p, min_p)


@given(seed=st.integers(0, 999), size=st.integers(1, 5000), k=st.integers(1, 5000), ties=st.booleans())
@settings(max_examples=100, deadline=None)
def test_largest_is_the_head_of_a_full_sort(seed, size, k, ties):
    logits = logits_of(seed, size, ties)
    assert largest(logits, k).tolist() == sorted(np.lexsort((np.arange(size), -logits))[:k].tolist())


@pytest.mark.parametrize(("spread", "top_p"), [(0.1, 0.9), (1.0, 0.5), (4.0, 0.95), (8.0, 0.99)])
def test_top_p_over_a_whole_vocabulary_is_the_smallest_set(spread, top_p):
    logits = np.random.default_rng(1).standard_normal(151_936).astype(np.float32) * spread
    ids = keep_top_p(logits, np.arange(logits.size), 1.0, top_p)
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    assert p[ids].sum() >= top_p - 1e-5
    assert p[ids].sum() - p[ids].min() < top_p + 1e-5
    assert p[ids].min() >= np.delete(p, ids).max()


def test_frequencies_follow_the_softmax():
    logits = np.array([2.0, 1.0, 0.0, -1.0, -30.0], np.float32)
    sampler = Sampler(SamplingParams(**{**PLAIN, "temperature": 0.8}, seed=7), 5)
    counts = Counter(sampler.sample(logits) for _ in range(20_000))
    p = np.exp(logits / 0.8)
    p /= p.sum()
    for i in range(4):
        assert counts[i] / 20_000 == pytest.approx(p[i], abs=0.012)
    assert counts[4] == 0


@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_rough_weights_choose_what_exact_ones_do(spread, temperature, monkeypatch):
    """Where they say anything at all, which is often where a model is sure."""
    size, said = 20_000, 0
    logits = (np.random.default_rng(3).normal(size=size) * spread).astype(np.float32)
    logits[[5, 700, 19_999]] = logits.max() + np.array([9, 8, 7], np.float32)
    ids = np.arange(size)
    total = np.cumsum(sample._weights(logits, ids, temperature))
    edges = [(total[i] + step) / total[-1] for i in (5, 700, 19_998) for step in (-1e-9, 0.0, 1e-9)]
    for number in [0.0, *np.random.default_rng(4).random(200), *edges, math.nextafter(1.0, 0.0)]:
        exact = min(int(np.searchsorted(total, number * total[-1], side="right")), size - 1)
        rough = sample._surely(logits, temperature, number)
        assert rough in (None, exact)
        said += rough is not None
    assert said > 150 or temperature * spread > 1.0


def test_same_seed_same_choices_and_a_missing_seed_is_reported():
    logits = [logits_of(i, 500) for i in range(50)]

    def run(seed):
        sampler = Sampler(SamplingParams(seed=seed), 500)
        return sampler.seed, [sampler.sample(x) for x in logits]

    assert run(3) == run(3)
    seed, first = run(None)
    assert run(seed)[1] == first
    assert run(None)[0] != seed
    assert run(4)[1] != run(3)[1]


def test_greedy_takes_the_lowest_of_equals_and_needs_no_random_number():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.0), 4)
    assert sampler.sample(np.array([1, 3, 3, 0], np.float32)) == 1


def test_tiny_temperature_is_greedy_without_overflow():
    sampler = Sampler(SamplingParams(**{**PLAIN, "temperature": 1e-30}, seed=1), 300)
    logits = logits_of(5, 300)
    assert {sampler.sample(logits) for _ in range(20)} == {int(logits.argmax())}


def test_penalties_by_hand():
    logits = np.array([2.0, -2.0, 1.0, 1.0], np.float32)
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: -4.0})
    out = penalize(logits, [0, 0, 1], {0: 2}, params)
    assert out.tolist() == [2.0 / 2 - 0.5 - 0.25 * 2, -4.0, 1.0, -3.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 1.0]


def test_repetition_sees_prompt_and_answer_but_presence_only_the_answer():
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    prompt = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), 3, [0])
    assert prompt.sample(logits) == 1
    assert prompt.sample(logits) == 0  # both halved now
    presence = Sampler(SamplingParams(temperature=0, repetition_penalty=1.0, presence_penalty=0.5), 3, [0])
    assert [presence.sample(logits) for _ in range(2)] == [0, 1]
    long_ago = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), 3, [0] + [2] * REPETITION_WINDOW)
    assert long_ago.sample(logits) == 0


def test_logprobs_are_the_raw_distribution():
    logits = logits_of(2, 1000)
    p = np.exp(logits.astype(np.float64))
    p = np.log(p / p.sum())
    out = logprobs_of(logits, 17, 5)
    assert out.id == 17
    assert out.logprob == pytest.approx(p[17], abs=1e-5)
    assert [i for i, _ in out.top] == np.argsort(-logits)[:5].tolist()
    assert [v for _, v in out.top] == pytest.approx(sorted(p, reverse=True)[:5], abs=1e-5)
    assert logprobs_of(logits, 3, 0).top == ()


BAD = [
    {"temperature": -0.1}, {"temperature": 5.1}, {"temperature": math.nan}, {"temperature": math.inf},
    {"temperature": "1"}, {"temperature": True}, {"top_k": -1}, {"top_k": 1.5}, {"top_k": 10**9}, {"top_p": 1.01},
    {"top_p": -1}, {"min_p": 2}, {"repetition_penalty": 0}, {"presence_penalty": 3}, {"frequency_penalty": -3},
    {"seed": -1}, {"seed": 2**64}, {"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 10**9}, {"max_tokens": None},
    {"logprobs": 21}, {"logprobs": -1}, {"stop": "a"}, {"stop": ("",)}, {"stop": ("a",) * 4097}, {"stop": ("a" * 4097,)},
    {"stop": (1,)}, {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: 101.0}}, {"logit_bias": {"1": 1.0}},
    {"logit_bias": {1: math.nan}}, {"logit_bias": dict.fromkeys(range(1025), 1.0)}, {"logit_bias": [1]},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda b: f"{next(iter(b))}={str(next(iter(b.values())))[:20]}")
def test_bounds_name_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]) as error:
        SamplingParams(**bad)
    assert len(str(error.value)) < 200


def test_values_at_the_bounds_are_accepted():
    SamplingParams(temperature=5, top_k=0, top_p=0, min_p=1, seed=0, logprobs=20, max_tokens=1, stop=("a",) * 4096)


def test_bias_on_a_token_that_does_not_exist():
    with pytest.raises(ValueError, match="token 10 does not exist"):
        Sampler(SamplingParams(logit_bias={10: 1.0}), 10)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_logits_are_refused(value):
    logits = np.zeros(10, np.float32)
    logits[3] = value
    with pytest.raises(ValueError, match="not finite"):
        Sampler(SamplingParams(seed=1), 10).sample(logits)


def test_a_forbidden_token_never_comes():
    logits = logits_of(1, 200)
    logits[50:] = -np.inf
    sampler = Sampler(SamplingParams(**{**PLAIN, "temperature": 5.0}, seed=1), 200)
    assert max(sampler.sample(logits) for _ in range(300)) < 50


def plain_largest(logits, k):
    """A full sort."""
    return np.sort(np.lexsort((np.arange(logits.size), -logits))[:k])


def restricted(seed, size, allowed, ties=False):
    """Logits of which a grammar allows that many."""
    logits = np.full(size, -np.inf, np.float32)
    ids = np.random.default_rng(seed).choice(size, allowed, replace=False)
    logits[ids] = logits_of(seed, size, ties)[ids]
    return logits


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 3000),
    share=st.sampled_from([0.0, 0.01, 0.3]),
    ties=st.booleans(),
    top_k=st.sampled_from([0, 1, 20, 300]),
    top_p=st.sampled_from([0.1, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=150, deadline=None)
def test_with_a_grammar_the_choices_of_a_full_sort(seed, size, share, ties, top_k, top_p, min_p):
    logits = restricted(seed, size, max(1, int(size * share)), ties)
    params = SamplingParams(temperature=1.3, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p)
    said = []
    for choose in (largest, plain_largest):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample, "largest", choose)
            sampler = Sampler(params, size)
            said.append([sampler.sample(logits) for _ in range(10)])
    assert said[0] == said[1]


@pytest.mark.parametrize("allowed", [1, 5, 19, 25, 5000])
def test_what_a_grammar_forbids_is_not_sorted(allowed, monkeypatch):
    logits = restricted(allowed, 151_936, allowed)
    sorted_sizes = []
    real = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: (sorted_sizes.append(len(keys[0])), real(keys))[1])
    params = SamplingParams(seed=1, top_k=20, top_p=0.8)
    sampler = Sampler(params, logits.size, range(200))
    said = [sampler.sample(logits) for _ in range(5)]
    assert max(sorted_sizes, default=0) <= min(allowed, 64 * params.top_k)
    monkeypatch.setattr(sample, "largest", plain_largest)
    sampler = Sampler(params, logits.size, range(200))
    assert said == [sampler.sample(logits) for _ in range(5)]


def test_a_sample_from_a_real_vocabulary_costs_under_a_millisecond():
    logits = logits_of(3, 151_936)
    sampler = Sampler(SamplingParams(seed=1, top_k=40, min_p=0.05, presence_penalty=0.5), 151_936, range(500))
    assert seconds_of(lambda: [sampler.sample(logits) for _ in range(40)], 0.04) < 40 * 1e-3


def test_a_files_recommendation_becomes_the_default():
    metadata = {
        "general.sampling.temp": 0.25, "general.sampling.top_k": 30.0, "general.sampling.top_p": 0.5,
        "general.sampling.min_p": 0.125, "general.sampling.penalty_repeat": 1.5, "general.sampling.mirostat": 2,
    }  # fmt: skip
    expected = {"temperature": 0.25, "top_k": 30, "top_p": 0.5, "min_p": 0.125, "repetition_penalty": 1.5}
    assert recommended_in(metadata) == expected
    assert isinstance(recommended_in(metadata)["top_k"], int)
    wild = {"general.sampling.temp": 1e9, "general.sampling.top_k": "many", "general.sampling.top_p": 0.5}
    assert recommended_in(wild) == {"top_p": 0.5}
    assert recommended_in({}) == {}


def test_what_is_given_wins_over_the_recommendation_and_that_over_our_own():
    engine = fake_engine()
    assert engine.recommended() == SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
    engine.sampling = {"temperature": 0.3, "repetition_penalty": 1.1}
    assert engine.recommended(top_k=None, max_tokens=5) == SamplingParams(
        temperature=0.3, top_k=40, top_p=0.9, repetition_penalty=1.1, max_tokens=5
    )
    assert engine.recommended(temperature=0.0, repetition_penalty=1.0).temperature == 0.0
    assert engine.recommended(temperature=0.0, repetition_penalty=1.0).repetition_penalty == 1.0
    with pytest.raises(ValueError, match="top_p must be from"):
        engine.recommended(top_p=3)


def test_thinking_that_is_switched_off_has_its_own_recommendation():
    engine = fake_engine()
    engine.sampling, engine.modes = {"temperature": 1.0, "top_p": 0.95}, {False: {"temperature": 0.7}}
    assert engine.recommended().temperature == engine.recommended(thinking=True).temperature == 1.0
    assert engine.recommended(thinking=False).temperature == 0.7
    assert engine.recommended(thinking=False).top_p == 0.95
    assert engine.recommended(thinking=False, temperature=0.1).temperature == 0.1


@pytest.mark.parametrize("name", sorted(catalog.load().models))
def test_the_catalogs_recommendations_are_settings_of_ours(name):
    SamplingParams(**catalog.sampling_of(name))
    for more in catalog.modes_of(name).values():
        SamplingParams(**catalog.sampling_of(name) | more)


def test_the_defaults_change_nothing():
    """Greedy is the largest logit whatever came before, and a draw is one from the model's own distribution."""
    logits = logits_of(3, 500)
    assert Sampler(SamplingParams(temperature=0), 500, [int(logits.argmax())] * 9).sample(logits) == logits.argmax()
    assert SamplingParams() == SamplingParams(**PLAIN)
