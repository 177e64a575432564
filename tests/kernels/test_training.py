"""What lies between the products of a training step: the reference, and the same bits on every instruction set."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.kernels import reference

HALF_A_STEP = 2.0**-8 * 1.01  # of bfloat16, relative, and what float32 adds to it


def rounded(values):
    """As bfloat16, to the nearest: its bits, and the numbers that they are."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return bits, numbers(bits)


def numbers(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def draw(seed, *shape, scale=3.0):
    return rounded(np.random.default_rng(seed).normal(size=shape) * scale)


def empty(*shape):
    return np.full(shape, 0x7FC0, np.uint16)  # NaN: what is not written shows


def everywhere(run):
    """The results of run(), the same bits on all instruction sets."""
    found = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        found.append(run())
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return found[0]


def near(bits, expected, **tolerance):
    np.testing.assert_allclose(numbers(bits), expected, **({"rtol": HALF_A_STEP, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 4111, 9000])
def test_swiglu_and_its_gradients(size):
    (gate, g), (up, u), (d, dy) = (draw(seed, size) for seed in range(3))

    def run():
        out, d_gate, d_up = empty(size), empty(size), empty(size)
        kernels.swiglu_bf16(gate, up, out)
        kernels.swiglu_back_bf16(gate, up, d, d_gate, d_up)
        return out, d_gate, d_up

    out, d_gate, d_up = everywhere(run)
    near(out, reference.swiglu(np.concatenate([g, u])))
    expected = reference.swiglu_back(g, u, dy)
    near(d_gate, expected[0])
    near(d_up, expected[1])


def test_gates_far_from_zero_stay_finite_and_nan_stays_nan():
    gate, g = rounded([-3e38, -1e4, -100.0, -88.0, 0.0, 88.0, 1e4, 3e38, np.nan])
    up, _ = rounded(np.ones(9))
    out, d_gate, d_up = empty(9), empty(9), empty(9)
    kernels.swiglu_bf16(gate, up, out)
    kernels.swiglu_back_bf16(gate, up, up, d_gate, d_up)
    for found in (out, d_gate, d_up):
        assert np.isfinite(numbers(found)[:8]).all()
        assert np.isnan(numbers(found)[8])
    near(out[5:8], g[5:8])


@pytest.mark.parametrize("width", [16, 48, 384, 2304])
@pytest.mark.parametrize("rows", [1, 5])
def test_norm_and_its_gradients(width, rows):
    (x, wide), (d, dy) = draw(1, rows, width), draw(2, rows, width, scale=1.0)
    weight = np.random.default_rng(3).normal(size=width).astype(np.float32)

    def run():
        out, dx, inverse, sums = (
            empty(rows, width),
            empty(rows, width),
            np.empty(rows, np.float32),
            np.empty(width, np.float32),
        )
        kernels.rmsnorm_bf16(x, weight, 1e-5, out, inverse)
        kernels.rmsnorm_back_bf16(x, d, weight, inverse, dx, sums)
        alone = empty(rows, width)
        kernels.rmsnorm_back_bf16(x, d, weight, inverse, alone, None)
        np.testing.assert_array_equal(alone, dx)
        return out, dx, inverse, sums

    out, dx, inverse, sums = everywhere(run)
    near(out, reference.rmsnorm(wide, weight, 1e-5))
    np.testing.assert_allclose(inverse, 1 / np.sqrt(np.mean(wide.astype(np.float64) ** 2, -1) + 1e-5), rtol=1e-5)
    expected = reference.rmsnorm_back(wide, weight, 1e-5, dy)
    near(dx, expected[0], atol=1e-5)
    np.testing.assert_allclose(sums, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["one table", "a table a row"])
@pytest.mark.parametrize("shape", [(2, 7, 2, 3, 64), (1, 5, 1, 1, 32), (3, 4, 4, 1, 128)], ids=str)
def test_heads_are_turned_there_and_back(shape, own):
    batch, time, groups, share, width = shape
    bits, x = draw(1, *shape)
    angles = np.random.default_rng(2).normal(size=(batch if own else 1, 1, time, width // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def run():
        out, back = np.empty((batch, groups, time, share, width), np.float32), empty(*shape)
        kernels.turn_bf16(bits, cos, sin, 0.25, out)
        kernels.turn_back_bf16(rounded(out)[0], cos, sin, 4.0, back)
        return out, back

    out, back = everywhere(run)
    for b in range(batch):
        c, s = (t[b if own else 0, 0] for t in (cos, sin))
        expected = 0.25 * reference.rope(x[b].reshape(time, groups * share, width), c, s)
        found = out[b].transpose(1, 0, 2, 3).reshape(time, groups * share, width)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    near(back, x, rtol=3 * HALF_A_STEP, atol=0.05)


def test_shapes_that_do_not_fit_are_refused():
    a, b, f = empty(32), empty(16), np.empty(16, np.float32)
    with pytest.raises(ValueError, match="different sizes"):
        kernels.swiglu_bf16(a, b, a)
    with pytest.raises(ValueError, match="different sizes"):
        kernels.swiglu_back_bf16(a, a, a, a, b)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.rmsnorm_bf16(a, np.empty(24, np.float32), 1e-5, a, np.empty(1, np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.rmsnorm_back_bf16(a, a, f, np.empty(2, np.float32), a, np.empty(8, np.float32))
    with pytest.raises(TypeError):  # what is written into must be the array itself, not a copy
        kernels.swiglu_bf16(b, b, a[::2])
    with pytest.raises(ValueError, match=r"\[B, T, K, G, H\]"):
        kernels.turn_bf16(a, f, f, 1.0, np.empty(32, np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.turn_back_bf16(
            a.reshape(1, 1, 1, 1, 32), np.empty((3, 16), np.float32), np.empty((3, 16), np.float32), 1.0, a
        )
