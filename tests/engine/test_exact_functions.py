"""Exponentials and log-sums: right, and the same bits on every machine; so are log-probabilities and draws."""

import hashlib
import math

import numpy as np

from gangpao.engine import exact
from gangpao.engine.sample import Sampler, SamplingParams, logprobs_of
from tests.engine.plain_numpy import printed_by


def test_exponentials_are_right():
    random = np.random.default_rng(0)
    x = np.concatenate([[0.0, -1e-9, -43.9], -random.random(50_000) * 43, -random.random(1000) * 1e-4])
    np.testing.assert_allclose(exact.exp(x), np.exp(x), rtol=5e-11, atol=0)
    assert (exact.exp(np.array([-44.0, -1000.0, -np.inf])) == 0).all()
    assert exact.exp(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert exact.exp(np.empty(0)).shape == (0,)


def test_log_sums_are_right_and_do_not_depend_on_the_order():
    random = np.random.default_rng(1)
    for size in (1, 7, 8192, 151_936):
        logits = (random.standard_normal(size) * 5 + 3).astype(np.float32)
        found = exact.log_sum_exp(logits)
        np.testing.assert_allclose(found, np.logaddexp.reduce(logits.astype(np.float64)), rtol=0, atol=2e-8)
        assert found == exact.log_sum_exp(logits[::-1].copy())
    masked = np.full(100, -np.inf, np.float32)
    masked[[3, 50]] = 2.0
    assert exact.log_sum_exp(masked) == 2.0 + math.log(2)


def digest():
    """Of log-probabilities and of draws from wide open distributions."""
    out = hashlib.sha256()
    for seed in range(6):
        logits = (np.random.default_rng(seed).standard_normal(50_000) * (1 + seed)).astype(np.float32)
        found = logprobs_of(logits, seed * 1000, 20)
        out.update(np.array([found.logprob, *(value for _, value in found.top)]).tobytes())
        for params in ({}, {"top_p": 0.9}, {"temperature": 0.7, "top_k": 50, "min_p": 0.01}):
            sampler = Sampler(SamplingParams(seed=seed, **params), 50_000)
            out.update(np.array([sampler.sample(logits) for _ in range(8)]).tobytes())
    return out.hexdigest()


DIGEST = "6d108f6fb1118f530343c2cdf395d4de84281a10c373c6b7cb342719565624bc"


def test_log_probabilities_and_draws_have_the_same_bits_on_every_machine():
    assert digest() == DIGEST


def test_they_do_not_depend_on_instruction_sets_of_numpy():
    assert printed_by(__file__, "digest") == DIGEST
