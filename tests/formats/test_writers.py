"""What the searches lose: beside llama.cpp's own quantizers, on edges, and on weights that a type holds exactly."""

import numpy as np
import pytest

from gangpao.formats.blocks import BY_NAME, Unwritable, dequantize, quantize
from gangpao.formats.codes import codes, pack
from gangpao.formats.quants.writers import column_weights
from tests.kernels.random_blocks import SHAPES, random_rows

# Squared error as a share of the squares, of `heavy()`: without importance, and with it, weighed by it. By ggml_quantize_chunk of
# llama.cpp (in xllamacpp 2026.10.11549), called through ctypes.
LLAMA_CPP = {
    "Q4_0": (1.1207e-02, 9.2912e-03),
    "Q4_1": (8.0648e-03, 5.1375e-03),
    "Q5_0": (2.7843e-03, 2.2667e-03),
    "Q5_1": (1.8587e-03, 1.2005e-03),
    "Q8_0": (4.3841e-05, 4.3066e-05),
    "Q2_K": (1.0888e-01, 6.4252e-02),
    "Q3_K": (3.0717e-02, 2.4090e-02),
    "Q4_K": (6.7745e-03, 5.3982e-03),
    "Q5_K": (1.7367e-03, 1.4337e-03),
    "Q6_K": (4.4975e-04, 3.6996e-04),
    "IQ4_NL": (7.7404e-03, 6.4742e-03),
    "IQ4_XS": (7.8790e-03, 6.6722e-03),
    "TQ1_0": (7.3790e-01, 7.2684e-01),
    "TQ2_0": (7.3790e-01, 7.2684e-01),
}
REFERENCE = {"Q4_0", "Q4_1", "Q8_0"}  # without importance: ggml's own rounding


def heavy():
    rng = np.random.default_rng(11)
    x = rng.standard_t(5, size=(48, 512)).astype(np.float32) * np.float32(0.03)
    return x, rng.lognormal(0, 1, 512).astype(np.float32)


def share(x, y, weights):
    return float(
        (np.square(y.astype(np.float64) - x) @ weights).sum() / (np.square(x.astype(np.float64)) @ weights).sum()
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_less_is_lost_than_by_llama_cpp(kind):
    x, importance = heavy()
    plain, weighted = LLAMA_CPP[kind]
    ours = share(x, dequantize(quantize(x, kind), kind), np.ones(512))
    assert ours <= plain * (1.0001 if kind in REFERENCE else 0.96)
    assert share(x, dequantize(quantize(x, kind, importance), kind), importance) <= weighted * 0.98


@pytest.mark.parametrize("kind", SHAPES)
def test_importance_of_another_scale_is_the_same_importance(kind):
    x, importance = heavy()
    raw = quantize(x, kind, importance)
    assert np.array_equal(quantize(x, kind, importance * np.float32(1024)), raw)
    searched = quantize(x, kind, np.full(512, 7, np.float32))
    assert np.array_equal(quantize(x, kind, np.zeros(512, np.float32)), searched)  # nothing known: all the same
    if kind not in REFERENCE:
        assert np.array_equal(quantize(x, kind), searched)


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_on_the_grid_stay_there(kind):
    """What is written once is written again with at most a fraction of the first loss: exports do not wear a model out."""
    x, _ = heavy()
    once = dequantize(quantize(x, kind, np.ones(512, np.float32)), kind)
    twice = dequantize(quantize(once, kind, np.ones(512, np.float32)), kind)
    assert share(once, twice, np.ones(512)) <= 0.2 * share(x, once, np.ones(512))


def edges():
    rng = np.random.default_rng(5)
    x = rng.normal(0, 0.05, (16, 256)).astype(np.float32)
    x[0] = 0
    x[1] = 0.25
    x[2] = -0.25
    x[3] = np.abs(x[3])
    x[4] = -np.abs(x[4])
    x[5, 1:] = 0  # one value
    x[6] *= 1e-6
    x[7] = 1e-42  # denormal
    x[8] *= 1e4
    x[9] = np.round(x[9], 1)
    x[10, ::2] = 0
    x[11, 7] = -50
    x[12, 32:] = 0  # one group
    x[13, :32] += 3
    return x


@pytest.mark.parametrize("kind", SHAPES)
def test_edges(kind):
    x = edges()
    for importance in (None, np.ones(256, np.float32), np.eye(256, dtype=np.float32)[9]):
        raw = quantize(x, kind, importance)
        assert raw.shape == (16, BY_NAME[kind].row_bytes(256))
        y = dequantize(raw, kind)
        assert np.isfinite(y).all()
        assert not y[[0, 7]].any()
        taken = codes(raw, kind, 256)
        assert np.array_equal(pack(taken), raw)
        if importance is None or importance.all():
            assert (
                (np.square(y - x).sum(axis=1)) <= np.square(x).sum(axis=1) * BY_NAME[kind].written.loss ** 2 + 1e-4
            ).all() or (kind in REFERENCE)
    assert quantize(x[:0], kind).shape == (0, BY_NAME[kind].row_bytes(256))


@pytest.mark.parametrize("kind", ["Q4_K", "TQ2_0"])
def test_a_part_is_written_as_the_whole(kind):
    x, importance = heavy()
    whole = quantize(x, kind, importance)
    assert np.array_equal(quantize(x[7:9], kind, importance), whole[7:9])


def test_ternary_weights_come_through_exactly():
    raw = random_rows(np.random.default_rng(2), "TQ2_0", 8, 512)
    x = dequantize(raw, "TQ2_0")
    for kind in ("TQ1_0", "TQ2_0"):
        assert np.array_equal(dequantize(quantize(x, kind), kind), x)


def test_what_no_importance_can_be_is_refused():
    x, importance = heavy()
    for wrong, words in (
        (importance[:-1], "each of 512 columns"),
        (-importance, "column 0 is -"),
        (importance * np.nan, "nan"),
    ):
        with pytest.raises(ValueError, match=words):
            quantize(x, "Q4_K", wrong)
    weights = column_weights(importance, 512)
    assert weights.min() >= 2**-12
    assert abs(weights.mean() - 1) < 1e-3
    x[3, 5] = 5e6
    with pytest.raises(Unwritable, match="row 3: a value of 5e"):
        quantize(x, "Q4_K")
