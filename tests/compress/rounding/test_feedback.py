"""One matrix: what feedback and descent promise, on every type."""

import numpy as np
import pytest
import torch

from gangpao.compress.rounding.feedback import damped, descend, errors, feed_back, plain
from gangpao.compress.rounding.grids import GRIDS, packed, unpacked
from gangpao.formats.blocks import dequantize

ROWS, COLS = 24, 512


@pytest.fixture(scope="module")
def inputs():
    """Weights [R, C] and the Hessian of inputs that hang together and differ in size."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(COLS, COLS, generator=generator) / COLS**0.5 + 0.3 * torch.eye(COLS)
    x = torch.randn(1024, COLS, generator=generator) @ mix * torch.linspace(0.2, 3, COLS)
    weights = 0.05 * torch.randn(ROWS, COLS, generator=generator)
    return weights, damped(x.T @ x / 1024, 0.01)


@pytest.mark.parametrize("kind", GRIDS)
def test_bytes_decode_to_the_weights_that_were_held(inputs, kind):
    weights, hessian = inputs
    held = feed_back(weights, hessian, GRIDS[kind])
    descend(held, weights, hessian, 1)
    raw = packed(held)
    np.testing.assert_array_equal(dequantize(raw, kind), held.dense().numpy())
    back = unpacked(raw, GRIDS[kind], COLS)
    for ours, theirs in zip(held.tensors(), back.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("kind", GRIDS)
def test_feedback_and_descent_leave_less_error_than_plain_rounding(inputs, kind):
    weights, hessian = inputs
    grid = GRIDS[kind]
    alone = errors(weights, plain(weights, hessian.diagonal(), grid).dense(), hessian)
    held = feed_back(weights, hessian, grid)
    before = errors(weights, held.dense(), hessian)
    assert before.sum() < 0.9 * alone.sum()
    for _ in range(2):
        descend(held, weights, hessian, 1)
        after = errors(weights, held.dense(), hessian)
        assert (after <= before * (1 + 1e-4)).all()
        before = after
    assert before.sum() < 0.65 * alone.sum()


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "TQ2_0"])
def test_with_a_diagonal_hessian_feedback_is_plain_rounding(inputs, kind):
    weights, hessian = inputs
    diagonal = torch.diag(hessian.diagonal())
    ours, theirs = feed_back(weights, diagonal, GRIDS[kind]), plain(weights, hessian.diagonal(), GRIDS[kind])
    same = (ours.dense() == theirs.dense()).float().mean()
    assert same > 0.97  # 1 / h twice through a square root moves a tie now and then
    errors_of = [errors(weights, held.dense(), diagonal).sum().item() for held in (ours, theirs)]
    assert errors_of[0] == pytest.approx(errors_of[1], rel=1e-3)


def test_groups_choose_their_scale_from_what_errors_made_of_their_weights(inputs):
    """A type with scales of groups looks again at every group, so a diagonal Hessian gives plain rounding or better."""
    weights, hessian = inputs
    diagonal = torch.diag(hessian.diagonal())
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS"):
        ours, theirs = feed_back(weights, diagonal, GRIDS[kind]), plain(weights, hessian.diagonal(), GRIDS[kind])
        assert errors(weights, ours.dense(), diagonal).sum() <= 1.001 * errors(weights, theirs.dense(), diagonal).sum()


@pytest.mark.parametrize("kind", GRIDS)
def test_zeros_and_constant_rows_are_held(kind):
    weights = torch.zeros(3, COLS)
    weights[1] = 0.25
    hessian = damped(torch.zeros(COLS, COLS), 0.01) + torch.eye(COLS)
    held = feed_back(weights, hessian, GRIDS[kind])
    descend(held, weights, hessian, 1)
    assert torch.isfinite(held.dense()).all()
    assert not held.dense()[0].any()
    torch.testing.assert_close(held.dense()[1], weights[1], rtol=0.07, atol=0)
