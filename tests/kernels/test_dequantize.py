"""GGUF rows as floats: the kernel against the numpy reader, bit for bit, on every instruction set and from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gangpao import kernels
from gangpao.formats import blocks
from tests.kernels.random_blocks import SHAPES, random_rows

TYPES = tuple(row[0] for row in kernels.weight_types())


def rows_of(kind: str, rows: int, cols: int) -> np.ndarray:
    rng = np.random.default_rng(rows * cols)
    if kind in SHAPES:
        return random_rows(rng, kind, rows, cols)
    values = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(10.0) ** rng.integers(-7, 3, (rows, 1))
    return blocks.quantize(values, kind)


def dequantized(raw, kind, cols, begin, end, order=None, parallel=True):
    out = np.full((end - begin, cols), np.nan, np.float32)
    kernels.dequantize(raw, kind, len(raw), cols, out, begin, end, order, parallel)
    return out.view(np.uint32)


@pytest.mark.parametrize("kind", TYPES)
def test_the_kernel_is_the_numpy_reader_on_every_instruction_set(kind):
    block = blocks.BY_NAME[kind].block_size
    for cols in {1: (37, 64), 32: (96, 544), 256: (256, 768)}[block]:  # also a part of a superblock, and an odd end
        raw = rows_of(kind, 23, cols)
        want = blocks.dequantize(raw, kind).view(np.uint32)
        for isa in kernels.available_isas():
            kernels.set_isa(isa)
            for threads in (1, 3):
                kernels.set_num_threads(threads)
                assert np.array_equal(dequantized(raw, kind, cols, 0, 23), want), (isa, threads)


def test_rows_come_in_the_order_that_is_asked_for():
    raw = rows_of("Q4_K", 40, 256)
    want = blocks.dequantize(raw, "Q4_K").view(np.uint32)
    order = np.random.default_rng(1).permutation(40).astype(np.int32)
    assert np.array_equal(dequantized(raw, "Q4_K", 256, 5, 31, order), want[order[5:31]])
    some = np.array([3, 3, 39], np.int32)  # fewer than there are, and one twice: an embedding
    assert np.array_equal(dequantized(raw, "Q4_K", 256, 0, 3, some), want[some])
    assert dequantized(raw, "Q4_K", 256, 7, 7).shape == (0, 256)


def test_several_threads_may_call_it_at_the_same_time():
    kernels.set_num_threads(2)
    kinds = ("Q4_0", "Q6_K", "Q8_0", "F16")
    raws = {kind: rows_of(kind, 200, 512) for kind in kinds}
    wants = {kind: blocks.dequantize(raw, kind).view(np.uint32) for kind, raw in raws.items()}

    def work(i: int) -> bool:
        kind = kinds[i % len(kinds)]
        return np.array_equal(dequantized(raws[kind], kind, 512, 0, 200, parallel=i % 3 > 0), wants[kind])

    with ThreadPoolExecutor(4) as lanes:
        assert all(lanes.map(work, range(200)))


def test_what_does_not_fit_is_refused():
    raw = rows_of("Q4_0", 4, 64)
    bad_order = np.array([0, 4], np.int32)
    for kind, cols, begin, end, order, what in (
        ("IQ3_XXS", 64, 0, 4, None, "IQ3_XXS"), ("Q4_0", 33, 0, 4, None, "whole blocks"), ("Q4_0", 32, 0, 4, None, "bytes"),
        ("Q4_0", 64, 0, 5, None, "no such rows"), ("Q4_0", 64, 0, 2, bad_order, "out of range"),
        ("Q4_0", 64, 0, 3, bad_order, "no such rows"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            dequantized(raw, kind, cols, begin, end, order)
    with pytest.raises(ValueError, match="out must be"):
        kernels.dequantize(raw, "Q4_0", 4, 64, np.empty((3, 64), np.float32), 0, 4)
