"""Our reading of GGUF blocks against the gguf package, bit for bit."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as peer

from gangpao.formats import blocks
from tests.kernels.random_blocks import SHAPES, random_rows


@pytest.mark.parametrize("kind", SHAPES)
def test_equal_to_the_gguf_package(kind):
    rng = np.random.default_rng(0)
    for rows, cols in [(1, 256), (5, 768)]:
        raw = random_rows(rng, kind, rows, cols)
        ours, theirs = blocks.dequantize(raw, kind), peer(raw, GGMLQuantizationType[kind])
        assert ours.dtype == np.float32
        assert ours.shape == (rows, cols)
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_types(kind):
    x = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    if kind == "BF16":
        raw = (x.view(np.uint32) >> 16).astype(np.uint16)
        expected = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        raw = x.astype({"F32": np.float32, "F16": np.float16}[kind])
        expected = raw.astype(np.float32)
    assert np.array_equal(blocks.dequantize(raw.view(np.uint8), kind), expected)


def test_sizes_are_those_of_ggml():
    for kind in blocks.BY_NAME.values():
        assert GGML_QUANT_SIZES[GGMLQuantizationType(kind.id)] == (kind.block_size, kind.type_size)
        assert GGMLQuantizationType(kind.id).name == kind.name
    for number, name in blocks.UNSUPPORTED.items():
        assert number not in blocks.BY_ID
        if number in set(GGMLQuantizationType):
            assert GGMLQuantizationType(number).name == name


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="IQ3_XXS"):
        blocks.dequantize(np.zeros((1, 98), dtype=np.uint8), "IQ3_XXS")
    with pytest.raises(ValueError, match="18"):
        blocks.dequantize(np.zeros((1, 17), dtype=np.uint8), "Q4_0")
