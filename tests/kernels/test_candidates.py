"""Matrices in two planes, and the search for their largest products by the upper bits."""

import numpy as np
import pytest

from gangpao import kernels
from tests.kernels.random_blocks import random_rows

TYPES = {"Q8_0": 96, "Q6_K": 512}  # and columns
ROWS = 16 * 80 + 5


def head(kind, raw, *, planes):
    matrix = kernels.pack(raw.reshape(-1), kind, len(raw), TYPES[kind], None, kernels.Arena(), planes)
    return kernels.Linear([matrix])


def inputs(layer, x):
    rows = kernels.Array(*x.shape)
    rows.numpy()[:] = x
    acts = kernels.Activation(len(x), x.shape[1], [layer])
    kernels.quantize(rows, len(x), acts)
    return acts


def products(layer, x):
    out = kernels.Array(len(x), layer.rows)
    kernels.linear(layer, inputs(layer, x), out)
    return out.numpy().copy()


def search(candidates, layer, x, wanted):
    out = kernels.Array(len(x), layer.rows)
    panels = kernels.linear_largest(
        candidates, inputs(layer, x), out, [(k, np.array(ids, np.int32)) for k, ids in wanted]
    )
    return out.numpy().copy(), panels


@pytest.fixture
def everywhere():
    """The names of this machine's instruction sets; the one in use comes back at the end."""
    before = kernels.isa_name()
    yield kernels.available_isas()
    kernels.set_isa(before)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 3, 8, 16, 21])
def test_two_planes_have_the_products_of_one(kind, n, everywhere):
    rng = np.random.default_rng(n)
    raw = random_rows(rng, kind, ROWS, TYPES[kind])
    x = rng.normal(size=(n, TYPES[kind])).astype(np.float32)
    one, two = head(kind, raw, planes=False), head(kind, raw, planes=True)
    assert two.nbytes <= one.nbytes
    expected = products(one, x)
    for isa in everywhere:
        kernels.set_isa(isa)
        np.testing.assert_array_equal(products(two, x), expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("directions", [0, 3])
def test_a_search_finds_the_largest_with_the_bits_of_all(kind, directions, everywhere):
    rng = np.random.default_rng(7)
    raw = random_rows(rng, kind, ROWS, TYPES[kind])
    layer = head(kind, raw, planes=True)
    x = rng.normal(size=(9, TYPES[kind])).astype(np.float32)
    x[:, 5] += 20  # as hidden states have it: most of them lies in a few directions
    candidates = kernels.Candidates(layer)
    if directions:
        candidates.learn(inputs(layer, x[:directions]))
    known = [3, 3, ROWS - 1, 700]
    results = []
    for isa in everywhere:
        kernels.set_isa(isa)
        full = products(layer, x)
        for count in (1, 5, 40):
            got, panels = search(candidates, layer, x, [(count, known)] * len(x))
            assert 0 < panels <= candidates.panels
            seen = np.isfinite(got)
            np.testing.assert_array_equal(got[seen], full[seen])
            np.testing.assert_array_equal(got[:, known], full[:, known])
            others = full.copy()
            others[:, known] = -np.inf
            largest = np.argsort(-others, axis=1, kind="stable")[:, :count]
            assert np.take_along_axis(seen, largest, axis=1).all()
            results.append(got)
    for i, got in enumerate(results):  # which rows were looked at is the same everywhere, too
        np.testing.assert_array_equal(got, results[i % 3])


def test_most_rows_are_left_alone_where_one_stands_out():
    rng = np.random.default_rng(8)
    raw = random_rows(rng, "Q8_0", ROWS, TYPES["Q8_0"])
    layer = head("Q8_0", raw, planes=True)
    eye = np.eye(TYPES["Q8_0"], dtype=np.float32)
    weights = products(layer, eye).T
    x = weights[[77, 900]] / np.linalg.norm(weights[[77, 900]], axis=1, keepdims=True)
    got, panels = search(kernels.Candidates(layer), layer, x, [(1, ()), (1, ())])
    assert got.argmax(1).tolist() == [77, 900]
    assert panels < 20


def test_equal_rows_are_all_found():
    rng = np.random.default_rng(9)
    raw = random_rows(rng, "Q6_K", ROWS, TYPES["Q6_K"])
    raw[[40, 600, 1200]] = raw[600]
    layer = head("Q6_K", raw, planes=True)
    row = products(layer, np.eye(TYPES["Q6_K"], dtype=np.float32)).T[600:601]
    got, panels = search(kernels.Candidates(layer), layer, row / np.linalg.norm(row), [(1, ())])
    assert panels < 20
    assert np.flatnonzero(got[0] == got.max()).tolist() == [40, 600, 1200]


def test_what_is_no_number_is_computed_in_full():
    rng = np.random.default_rng(10)
    raw = random_rows(rng, "Q8_0", ROWS, TYPES["Q8_0"])
    layer = head("Q8_0", raw, planes=True)
    candidates = kernels.Candidates(layer)
    x = np.full((1, TYPES["Q8_0"]), np.nan, np.float32)
    assert search(candidates, layer, x, [(1, ())])[1] == candidates.panels
    raw[17, :2] = np.array([np.nan], np.float16).view(np.uint8)
    layer = head("Q8_0", raw, planes=True)
    damaged = kernels.Candidates(layer)
    assert not damaged.sound
    got, panels = search(damaged, layer, np.ones((1, TYPES["Q8_0"]), np.float32), [(1, ())])
    assert panels == damaged.panels
    assert np.isnan(got[0, 17])


def test_wrong_requests_are_refused():
    rng = np.random.default_rng(11)
    raw = random_rows(rng, "Q8_0", ROWS, TYPES["Q8_0"])
    with pytest.raises(ValueError, match="two planes"):
        kernels.Candidates(head("Q8_0", raw, planes=False))
    layer = head("Q8_0", raw, planes=True)
    candidates = kernels.Candidates(layer)
    x = np.ones((1, TYPES["Q8_0"]), np.float32)
    for wanted in ([(0, ())], [(1, (ROWS,))], [(1, (-1,))], []):
        with pytest.raises(ValueError, match="Candidates"):
            search(candidates, layer, x, wanted)
    with pytest.raises(ValueError, match="too many"):
        candidates.learn(inputs(layer, np.ones((9, TYPES["Q8_0"]), np.float32)))
    candidates.learn(inputs(layer, np.ones((2, TYPES["Q8_0"]), np.float32)))  # one depends on the other: none is taken
    assert search(candidates, layer, x, [(1, ())])[0].argmax() == products(layer, x).argmax()
