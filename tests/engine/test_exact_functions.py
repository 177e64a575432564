"""Exponentials and log-sums: right, and the same bits on every machine; so are log-probabilities and draws."""

import hashlib
import math

import numpy as np
import pytest

from gangpao import kernels
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


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_the_kernel_s_log_sum_exps_are_the_same_to_the_last_bit(isa):
    random, before = np.random.default_rng(3), kernels.isa_name()
    kernels.set_isa(isa)
    try:
        for size in (1, 15, 16, 17, 8193, 49_152):
            rows = kernels.Array(5, size)
            values = rows.numpy()
            values[:] = random.standard_normal((5, size)) * [[1], [9], [0], [1e6], [44]]
            values[1, ::3] = -np.inf
            values[1, 0] = 2.5
            assert exact.log_sum_exps(rows, 5) == [exact.log_sum_exp(row) for row in values], size
    finally:
        kernels.set_isa(before)


def test_a_row_that_is_no_numbers_has_no_log_sum_exp():
    rows = kernels.Array(4, 20)
    values = rows.numpy()
    values[:] = 1.0
    values[0, 3], values[1], values[2, 19] = np.nan, -np.inf, np.inf
    assert [math.isnan(x) for x in exact.log_sum_exps(rows, 4)] == [True, True, True, False]
    with pytest.raises(ValueError, match="more rows"):
        exact.log_sum_exps(rows, 5)


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
