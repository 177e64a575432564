"""Our quantizers against the gguf package (bytes) and against their inverse (error bounds)."""

import gguf
import numpy as np
import pytest

from gangpao.formats.blocks import BY_NAME, WRITTEN, dequantize, fits, quantize

REFERENCE = ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]  # as ggml rounds; the others are searched (test_writers.py)
STEPS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 2 / 15}


def rows():
    rng = np.random.default_rng(0)
    out = rng.normal(0, 0.05, (64, 256)).astype(np.float32)
    out[0] = 0
    out[1, ::2] = 0
    out[2] = 1.0
    out[3] *= 1e-6
    out[4] *= 1e4
    out[5, 7] = -50.0
    out[6] = np.abs(out[6])
    out[7] = np.round(out[7], 1)  # many ties
    return out


@pytest.mark.parametrize("kind", REFERENCE)
def test_bytes_equal_those_of_the_gguf_package(kind):
    expected = gguf.quants.quantize(rows(), gguf.GGMLQuantizationType[kind])
    ours = quantize(rows(), kind)
    assert ours.shape == expected.view(np.uint8).reshape(64, -1).shape
    assert np.array_equal(ours, expected.view(np.uint8).reshape(64, -1))


@pytest.mark.parametrize("kind", STEPS)
def test_the_way_back_is_near(kind):
    x = rows()
    y = dequantize(quantize(x, kind), kind)
    top = np.abs(x.reshape(64, -1, 32)).max(axis=-1, keepdims=True)
    error = np.abs(x - y).reshape(64, -1, 32)
    assert (error <= STEPS[kind] * top * 1.01 + 5e-6).all()  # 5e-6: the f16 scale of a tiny row is subnormal
    assert quantize(x, kind).shape[1] == BY_NAME[kind].row_bytes(256)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="'IQ3_S' is not a type we write; choose one of"):
        quantize(rows(), "IQ3_S")
    assert not fits(48, "Q8_0")
    assert fits(48, "F16")


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(kind, value):
    bad = rows()
    bad[3, 5] = value
    with pytest.raises(ValueError, match=rf"row 3: {value} is no number"):
        quantize(bad, kind)


@pytest.mark.parametrize(
    ("kind", "largest", "too_large", "advice"),
    [
        ("F16", 65504, 65505, r"row 3: a value of 65505, and F16 ends at 65,504; take BF16 or Q8_0"),
        ("BF16", 3.38e38, 3.4e38, r"row 3: a value of 3.4e\+38, and BF16 ends at 3.39e38; take F32"),
        ("Q8_0", 8.3e6, 8.4e6, r"row 3: a scale of a block of .*; take BF16 or F32"),
        ("Q4_0", 5.2e5, 5.3e5, r"row 3: a scale of a block of .*; take BF16 or F32"),
        ("Q4_1", 6.5e4, 1e6, r"row 3: a scale of a block of .*; take BF16 or F32"),
        ("Q5_0", 1.04e6, 1.05e6, r"row 3: a value of .*, and the scales end at .*; take BF16 or F32"),
        ("Q4_K", 4.1e6, 4.2e6, r"row 3: a value of .*, and the scales end at .*; take BF16 or F32"),
    ],
)
def test_what_the_type_cannot_hold_is_refused(kind, largest, too_large, advice):
    x = rows()
    x[3, 5] = -largest
    y = dequantize(quantize(x, kind), kind)
    assert np.isfinite(y).all()
    assert abs(y[3, 5] + largest) <= largest / 8
    x[3, 5] = too_large
    with pytest.raises(ValueError, match=advice):
        quantize(x, kind)
