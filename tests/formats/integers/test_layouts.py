"""Packed integer weights: ours against the packing of compressed-tensors, and against loops that follow the published layouts."""

import numpy as np
import pytest

from gangpao.formats.integers import bits
from gangpao.formats.integers.layouts import integers_of
from gangpao.formats.integers.scheme import Scheme, scheme_of

ROWS, COLS = 24, 80


def numbers(seed, shape, top):
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.int16)


def slow_pack(row, number_bits):
    """One row of unsigned numbers as a stream of bits, lowest first, in int32."""
    stream = 0
    for i, value in enumerate(row):
        stream |= int(value) << (number_bits * i)
    words = -(-len(row) * number_bits // 32)
    return [((stream >> (32 * w)) & 0xFFFFFFFF) for w in range(words)]


def packed_rows(q, number_bits):
    return np.array([slow_pack(row, number_bits) for row in q], dtype=np.uint32).view(np.int32)


def packed_cols(q, number_bits):
    return np.ascontiguousarray(packed_rows(q.T, number_bits).T)


@pytest.mark.parametrize("number_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [32, 40, 7])
def test_packing_is_a_stream_of_bits_and_is_taken_apart_again(number_bits, count):
    q = numbers(count, (3, count), 1 << number_bits)
    words = bits.pack(q, number_bits)
    np.testing.assert_array_equal(words, packed_rows(q, number_bits))
    np.testing.assert_array_equal(bits.unpack(words, number_bits, count), q)


@pytest.mark.parametrize("number_bits", [2, 3, 4, 8])
def test_packing_equals_that_of_compressed_tensors(number_bits):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    import torch

    q = numbers(1, (5, 70), 1 << number_bits)
    theirs = helpers.pack_to_int32(torch.from_numpy(q - (1 << (number_bits - 1))).to(torch.int8), number_bits)
    np.testing.assert_array_equal(bits.pack(q, number_bits), theirs.numpy())


def matrix(number_bits, group, *, symmetric=False):
    """Numbers of a matrix and the floats they stand for; the last group may be short."""
    groups = -(-COLS // group) if group else 1
    q = numbers(2, (ROWS, COLS), 1 << number_bits)
    zero = np.full((ROWS, groups), 1 << (number_bits - 1), np.int16)
    if not symmetric:
        zero = numbers(3, (ROWS, groups), (1 << number_bits) - 1) + np.int16(1)
    scale = np.random.default_rng(4).normal(size=(ROWS, groups)).astype(np.float16)  # some negative, as AutoRound's
    of = np.arange(COLS) // (group or COLS)
    dense = (q - zero[:, of]).astype(np.float32) * scale.astype(np.float32)[:, of]
    return q, zero, scale, dense


@pytest.mark.parametrize("number_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 0])
@pytest.mark.parametrize("minus_one", [True, False])
def test_gptq(number_bits, group, minus_one):
    q, zero, scale, dense = matrix(number_bits, group)
    parts = {
        "qweight": np.ascontiguousarray(packed_rows(q, number_bits).T),
        "qzeros": packed_rows(zero.T - np.int16(minus_one), number_bits),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": (np.arange(COLS) // (group or COLS)).astype(np.int32),
    }
    found = integers_of(parts, Scheme("gptq", number_bits, group, False, minus_one), (ROWS, COLS))
    np.testing.assert_array_equal(found.dense(), dense)


def test_a_column_is_in_the_group_that_g_idx_says():
    q, zero, scale, _ = matrix(4, 16)
    order = np.random.default_rng(5).permutation(COLS)
    g_idx = np.empty(COLS, np.int32)
    g_idx[order] = np.arange(COLS) // 16
    parts = {
        "qweight": np.ascontiguousarray(packed_rows(q, 4).T),
        "qzeros": packed_rows(zero.T, 4),
        "scales": scale.T,
        "g_idx": g_idx,
    }
    found = integers_of(parts, Scheme("gptq", 4, 16, False), (ROWS, COLS)).dense()
    wanted = (q - zero[:, g_idx]) * scale.astype(np.float32)[:, g_idx]
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_awq():
    q, zero, scale, dense = matrix(4, 16)
    place = [0, 2, 4, 6, 1, 3, 5, 7]  # number i of a word is column place[i] of its eight

    def interleaved(rows):
        return packed_rows(rows.reshape(len(rows), -1, 8)[:, :, place].reshape(len(rows), -1), 4)

    parts = {"qweight": interleaved(q.T), "qzeros": interleaved(zero.T & 15), "scales": scale.T}
    zero15 = np.where(zero == 16, 0, zero)
    found = integers_of(parts, Scheme("awq", 4, 16, False), (ROWS, COLS))
    np.testing.assert_array_equal(found.zero, zero15)
    if (zero < 16).all():
        np.testing.assert_array_equal(found.dense(), dense)


@pytest.mark.parametrize("number_bits", [4, 8])
@pytest.mark.parametrize("group", [32, 0])
def test_compressed_tensors(number_bits, group):
    q, zero, scale, dense = matrix(number_bits, group)
    parts = {
        "weight_packed": packed_rows(q, number_bits),
        "weight_scale": scale,
        "weight_zero_point": packed_cols(zero, number_bits),
        "weight_shape": np.array([ROWS, COLS]),
    }
    found = integers_of(parts, Scheme("packed", number_bits, group, False), (ROWS, COLS))
    np.testing.assert_array_equal(found.dense(), dense)


def test_three_bits_as_compressed_tensors_packed_them_before_0_18():
    q, zero, scale, _ = matrix(3, 32)
    q, zero, scale = (np.tile(part, (1, 4)) for part in (q[:, :64], zero[:, :2], scale[:, :2]))
    of = np.arange(256) // 32
    dense = (q - zero[:, of]).astype(np.float32) * scale.astype(np.float32)[:, of]

    def apart(rows):
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 10))).reshape(len(rows), -1, 10).astype(np.uint32)
        return (padded << np.arange(0, 30, 3, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32).view(np.int32)

    scheme = Scheme("packed", 3, 32, False)
    before = {
        "weight_packed": apart(q), "weight_scale": scale, "weight_zero_point": np.ascontiguousarray(apart(zero.T).T),
    }  # fmt: skip
    now = {"weight_packed": packed_rows(q, 3), "weight_scale": scale, "weight_zero_point": packed_cols(zero, 3)}
    for parts in (before, now):
        np.testing.assert_array_equal(integers_of(parts, scheme, (ROWS, 256)).dense(), dense)


def test_damaged_tensors_are_refused_by_name():
    q, zero, scale, _ = matrix(4, 16)
    whole = {"qweight": np.ascontiguousarray(packed_rows(q, 4).T), "qzeros": packed_rows(zero.T, 4), "scales": scale.T}
    scheme = Scheme("gptq", 4, 16, False)
    for name in whole:
        with pytest.raises(ValueError, match=name):
            integers_of(whole | {name: whole[name][:-1]}, scheme, (ROWS, COLS))
    with pytest.raises(ValueError, match="g_idx names group 9 of 5"):
        integers_of(whole | {"g_idx": np.full(COLS, 9, np.int32)}, scheme, (ROWS, COLS))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, Scheme("gptq", 4, 128, True, True)),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}, Scheme("gptq", 3, 0, True)),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, Scheme("awq", 4, 64, False)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"}, Scheme("awq", 4, 128, False)),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_awq"},
            Scheme("awq", 4, 128, False),
        ),
        (
            {"quant_method": "auto-round", "bits": 2, "group_size": 32, "packing_format": "auto_round:gptqmodel"},
            Scheme("gptq", 2, 32, True),
        ),
    ],
)  # fmt: skip
def test_schemes(config, wanted):
    assert scheme_of(config) == wanted


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"bits": 4}, "without a quant_method"), ({"quant_method": "bitsandbytes"}, "bitsandbytes"), ([], "a table"),
        ({"quant_method": "gptq", "bits": 5}, "bits is 5"), ({"quant_method": "gptq", "bits": 4, "group_size": "x"}, "group_size"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"q_proj": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"), ({"quant_method": "compressed-tensors"}, "format"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}, "config_groups"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(config, says):
    with pytest.raises(ValueError, match=says):
        scheme_of(config)
