"""Blocks taken apart into integers and put together again, against the readers and the gguf package's bytes."""

import dataclasses

import numpy as np
import pytest

from gangpao.formats.blocks import BY_NAME, dequantize
from gangpao.formats.codes import codes, group, levels, pack
from tests.kernels.random_blocks import SHAPES, random_rows

KINDS = tuple(SHAPES)


def rows_of(kind):
    raw = random_rows(np.random.default_rng(3), kind, 5, 768)
    return pack(codes(raw, kind, 768)) if kind == "TQ1_0" else raw  # 13 of its 256 bytes mean the same as another


@pytest.mark.parametrize("kind", KINDS)
def test_pack_is_the_inverse_and_the_numbers_are_the_weights(kind):
    raw = rows_of(kind)
    taken = codes(raw, kind, 768)
    assert np.array_equal(pack(taken), raw)
    weights = dequantize(raw, kind)
    assert np.array_equal(taken.weights().view(np.uint32), weights.view(np.uint32))
    assert np.array_equal(taken.step() * taken.values - taken.offset(), weights)
    assert taken.group == group(kind)
    assert taken.scale.shape == taken.minimum.shape == (5, 768 // taken.group)
    assert taken.d.shape == taken.dmin.shape == (5, 768 // BY_NAME[kind].block_size)
    assert np.array_equal(taken.d.astype(np.float16), taken.d)
    assert np.isin(taken.values, levels(kind)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_can_be_written(kind):
    taken = codes(rows_of(kind), kind, 768)
    allowed = levels(kind)
    assert (np.diff(allowed) > 0).all()
    values = np.resize(allowed.astype(np.int16), taken.values.shape)
    changed = dataclasses.replace(taken, values=values)
    again = codes(pack(changed), kind, 768)
    assert np.array_equal(again.values, values)
    assert np.array_equal(again.scale, taken.scale)
    values[2, 5] = allowed[-1] + 1
    with pytest.raises(ValueError, match=rf"row 2, column 5: {kind} has no value"):
        pack(changed)


def test_a_ternary_row_of_other_bytes_means_the_same():
    raw = random_rows(np.random.default_rng(4), "TQ1_0", 5, 768)
    assert np.array_equal(dequantize(pack(codes(raw, "TQ1_0", 768)), "TQ1_0"), dequantize(raw, "TQ1_0"))


def test_what_is_no_block_is_refused():
    for kind in ("F16", "IQ1_S"):
        with pytest.raises(ValueError, match=f"'{kind}' is not a type of blocks; choose one of Q4_0"):
            levels(kind)
    with pytest.raises(ValueError, match="rows of 64 weights must be uint8 blocks of 32 weights in 18 bytes"):
        codes(np.zeros((2, 35), np.uint8), "Q4_0", 64)
