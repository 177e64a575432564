"""Rows written as GGUF blocks: the kernel against the numpy definition, byte for byte, on every instruction set."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.formats.blocks import TYPES, quantize
from tests.formats.test_writers import edges, heavy

KINDS = tuple(t.name for t in TYPES)


def cases():
    """Names, values and importance: also rows that are no whole vectors of blocks, and columns that nothing meets."""
    x, importance = heavy()
    wide = x.reshape(16, 1536)[:3]
    gappy = np.where(np.arange(256) % 3 == 0, importance[:256], 0).astype(np.float32)
    return (x[:20], None), (x[:9], importance), (wide, np.tile(importance, 3)), (edges(), None), (edges(), gappy)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_writes_the_bytes_of_the_definition(kind):
    for number, (values, importance) in enumerate(cases()):
        want = quantize(values, kind, importance)
        for isa in kernels.available_isas():
            kernels.set_isa(isa)
            found = kernels.quantize_rows(values, kind, importance)
            assert found.shape == want.shape
            wrong = np.unique(np.nonzero(found != want)[0])
            assert len(wrong) == 0, f"case {number} on {isa}: rows {wrong[:5]}"


def test_threads_and_pieces_change_nothing():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 512)).astype(np.float32)
    importance = rng.lognormal(0, 1, 512).astype(np.float32)
    for kind in ("Q4_0", "Q4_K", "F16"):
        kernels.set_num_threads(1)
        want = kernels.quantize_rows(x, kind, importance)
        kernels.set_num_threads(3)
        assert np.array_equal(kernels.quantize_rows(x, kind, importance), want)
        assert np.array_equal(kernels.quantize_rows(x, kind, importance, parallel=False), want)
        assert np.array_equal(kernels.quantize_rows(x[101:102], kind, importance), want[101:102])
    assert kernels.quantize_rows(x[:0], "Q4_K").shape == (0, 288)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_written_is_refused(kind):
    for value in (np.nan, np.inf, -np.inf):
        bad = edges()
        bad[3, 5] = value
        with pytest.raises(ValueError, match=r"row 3: -?(nan|inf)\S* is no number"):
            kernels.quantize_rows(bad, kind)
    bad = edges()
    bad[3, 5] = 3.4e38
    if kind != "F32":
        with pytest.raises(ValueError, match=rf"row 3: a value of 33999\S*, and {kind} ends at about"):
            kernels.quantize_rows(bad, kind)


def test_what_does_not_fit_is_refused():
    x = edges()
    ones = np.ones(256, np.float32)
    for kind, importance, what in (
        ("IQ3_S", None, "IQ3_S cannot be written"),
        ("Q4_K", ones[1:], "each of 256 columns"),
        ("Q4_K", -ones, "column 0 is -1"),
        ("Q4_K", ones * np.nan, "column 0 is nan"),
    ):
        with pytest.raises(ValueError, match=what):
            kernels.quantize_rows(x, kind, importance)
    with pytest.raises(ValueError, match="whole blocks"):
        kernels.quantize_rows(np.ones((2, 48), np.float32), "Q8_0")
