"""What adapters add to a linear layer: the numpy reference, and the same bits in every company, on every instruction set."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.kernels import reference
from tests.kernels.random_blocks import random_rows

COLS = 96
ROWS = (80, 21, 16)


def make_layer(rng, rows=ROWS, cols=COLS):
    arena = kernels.Arena()
    return kernels.Linear(
        [kernels.pack(random_rows(rng, "Q8_0", n, cols).reshape(-1), "Q8_0", n, cols, None, arena) for n in rows]
    )


def make_source(rng, rank, rows, cols=COLS, dtype=np.int8):
    """A, B and their factors; None for rank 0."""
    if rank == 0:
        return None
    a, b = (rng.normal(size=s) * 40 for s in ((rank, cols), (rows, rank)))
    a, b = (np.clip(m, -127, 127).astype(dtype) for m in (a, b))
    return a, b, *(np.exp(rng.normal(size=n) - 4).astype(np.float32) for n in (rank, -(-rows // 16)))


def run(layer, x, table=None, parts=(), add=False, scale=1.0, keep_float=True):
    """Output [T, R] of the layer for x [T, C]; parts: (adapter, begin, end, scale)."""
    rows, out = kernels.Array(*x.shape), kernels.Array(len(x), layer.rows)
    rows.numpy()[:] = x
    out.numpy()[:] = 1.0
    acts = kernels.Activation(len(x), x.shape[1], [layer], keep_float=keep_float)
    kernels.quantize(rows, len(x), acts)
    runs = kernels.AdapterRuns()
    for part in parts:
        runs.add(*part)
    kernels.linear(layer, acts, out, add, scale, table, runs)
    return out.numpy().copy()


def table_of(layer, *adapters):
    table = kernels.LowRankTable()
    for number, sources in enumerate(adapters):
        table.set(number, kernels.LowRank(layer, sources, kernels.Arena()))
    return table


def expected_addition(x, sources, scale, sizes=ROWS):
    parts = []
    for rows, source in zip(sizes, sources, strict=True):
        parts.append(np.zeros((len(x), rows), np.float32) if source is None else reference.low_rank(x, *source, scale))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_low_rank_is_the_reference(dtype, n):
    rng = np.random.default_rng(1)
    layer = make_layer(rng)
    sources = [make_source(rng, rank, rows, dtype=dtype) for rank, rows in zip((5, 0, 16), ROWS, strict=True)]
    x = rng.normal(size=(n, COLS)).astype(np.float32)
    table = table_of(layer, sources)
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for add, factor in ((False, 1.0), (True, 0.25)):
            base = run(layer, x, add=add, scale=factor)
            got = run(layer, x, table, [(0, 0, n, 0.75)], add, factor)
            addition = expected_addition(x, sources, 0.75 * factor)
            np.testing.assert_allclose(got, base + addition, rtol=1e-5, atol=1e-5 * np.abs(addition).max())
            assert np.array_equal(got[:, ROWS[0] : ROWS[0] + ROWS[1]], base[:, ROWS[0] : ROWS[0] + ROWS[1]])


def test_more_columns_and_ranks_than_share_a_scale():
    """Each 512 have their own, so that one large input costs the others nothing."""
    rng = np.random.default_rng(7)
    cols, sizes = 1216, (48,)
    layer = make_layer(rng, sizes, cols)
    sources = [make_source(rng, 515, 48, cols)]
    x = rng.normal(size=(5, cols)).astype(np.float32)
    x[:, 3] = 1e4
    table = table_of(layer, sources)
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        got = run(layer, x, table, [(0, 0, 5, 1.0)]) - run(layer, x)
        addition = expected_addition(x, sources, 1.0, sizes)
        np.testing.assert_allclose(got, addition, rtol=1e-4, atol=1e-5 * np.abs(addition).max())


@pytest.mark.parametrize("size", [1e-30, 1e-36, 1e-38, 1e-40])
def test_numbers_too_small_for_a_scale_are_the_same_on_every_instruction_set(size):
    rng = np.random.default_rng(3)
    layer = make_layer(rng)
    table = table_of(layer, [make_source(rng, 5, rows) for rows in ROWS])
    x = rng.normal(size=(5, COLS)).astype(np.float32) * np.float32(size)
    found = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        found.append((run(layer, x), run(layer, x, table, [(0, 0, 5, 1.0)])))
    for base, added in found:
        assert np.array_equal(base, found[0][0])
        assert np.array_equal(added, found[0][1])


@pytest.mark.parametrize("rank", [1, 16, 40])
def test_inputs_in_15_bits_are_as_good_as_floats(rank):
    """What int16 loses of x and of A x is a ten-thousandth; int8 of A and B has lost a hundred times as much before."""
    rng = np.random.default_rng(8)
    layer = make_layer(rng)
    sources = [make_source(rng, rank, rows) for rows in ROWS]
    floats = [(a.astype(np.float32), b.astype(np.float32), *factors) for a, b, *factors in sources]
    x = rng.normal(size=(64, COLS)).astype(np.float32)
    exact, ours = (expected_addition(x, s, 1.0) for s in (floats, sources))
    got = run(layer, x, table_of(layer, sources), [(0, 0, 64, 1.0)]) - run(layer, x)
    assert np.linalg.norm(ours - exact) < 1e-4 * np.linalg.norm(exact)
    assert np.linalg.norm(got - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("cols", [COLS, 544])
def test_low_rank_is_bit_equal_everywhere(cols):
    """Instruction sets, threads, rows beside, other adapters and cuts of the rows change nothing."""
    rng = np.random.default_rng(2)
    layer = make_layer(rng, cols=cols)
    adapters = [
        [make_source(rng, rank, rows, cols) for rank, rows in zip(ranks, ROWS, strict=True)]
        for ranks in ((4, 7, 16), (1, 0, 33), (0, 8, 0))
    ]
    table = table_of(layer, *adapters)
    x = rng.normal(size=(90, cols)).astype(np.float32)
    parts = [(2, 0, 1, 1.0), (0, 1, 7, 0.5), (1, 5, 41, 1.0), (0, 50, 90, 2.0)]
    expected = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 3):
            kernels.set_num_threads(threads)
            got = run(layer, x, table, parts)
            expected = got if expected is None else expected
            assert np.array_equal(got, expected), (isa, threads)
        for row in (0, 3, 6, 20, 45, 77):
            alone = [(k, 0, 1, scale) for k, begin, end, scale in parts if begin <= row < end]
            assert np.array_equal(run(layer, x[row : row + 1], table, alone)[0], expected[row]), (isa, row)


def test_nothing_is_added_without_an_adapter_or_with_scale_0():
    rng = np.random.default_rng(3)
    layer = make_layer(rng)
    table = table_of(layer, [make_source(rng, 4, rows) for rows in ROWS])
    x = rng.normal(size=(9, COLS)).astype(np.float32)
    base = run(layer, x, keep_float=False)
    assert np.array_equal(run(layer, x, table, [(0, 0, 9, 0.0)], keep_float=False), base)
    assert np.array_equal(run(layer, x, table, [(5, 0, 9, 1.0)], keep_float=False), base)
    some = run(layer, x, table, [(0, 2, 4, 1.0)])
    assert np.array_equal(np.delete(some, [2, 3], axis=0), np.delete(base, [2, 3], axis=0))


def test_low_rank_refuses_wrong_shapes():
    rng = np.random.default_rng(4)
    layer, other = make_layer(rng), make_layer(rng, rows=(16, 16, 16))
    whole = a, b, ranks, panels = make_source(rng, 4, ROWS[0])
    arena = kernels.Arena()
    for sources, message in [
        ([whole], "for each matrix"),
        ([whole, whole, None], "A must be"),
        ([(a[:, :64].copy(), b, ranks, panels), None, None], "A must be"),
        ([(a.astype(np.float32), b, ranks, panels), None, None], "of one type"),
        ([(a.astype(np.int16), b.astype(np.int16), ranks, panels), None, None], "of one type"),
        ([(a, b, ranks[:3], panels), None, None], "a factor for each"),
        ([None, None, None], "no rank"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.LowRank(layer, sources, arena)
    x = np.ones((2, COLS), np.float32)
    table = table_of(layer, [whole, None, None])
    with pytest.raises(ValueError, match="not in this step"):
        run(layer, x, table, [(0, 0, 3, 1.0)])
    with pytest.raises(ValueError, match="in floats"):
        run(layer, x, table, [(0, 0, 2, 1.0)], keep_float=False)
    with pytest.raises(ValueError, match="another layer"):
        run(other, x, table, [(0, 0, 2, 1.0)])
    with pytest.raises(ValueError, match="no such rows"):
        kernels.AdapterRuns().add(0, 2, 2)
