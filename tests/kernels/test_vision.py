"""Layer norm, GELU and attention without a cache: the reference, and the same bits on every instruction set and thread count."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.kernels import reference


def everywhere(run):
    """The result of run(), which must have the same bits on all instruction sets, with one thread and with three."""
    out = []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 3):
            kernels.set_num_threads(threads)
            out.append(run())
    for other in out[1:]:
        np.testing.assert_array_equal(other, out[0])
    return out[0]


def array(values):
    out = kernels.Array(*values.shape)
    out.numpy()[:] = values
    return out


def floats(n, cols, fill):
    out = kernels.Activation(n, cols, [], True)
    fill(out)
    return out.floats().copy()


@pytest.mark.parametrize("cols", [1, 15, 16, 72, 1152])
def test_layer_norm_is_the_reference(cols):
    rng = np.random.default_rng(cols)
    x = (rng.normal(size=(5, cols)) * 3 + 40).astype(np.float32)
    weight, bias = rng.normal(size=(2, cols)).astype(np.float32)
    found = everywhere(
        lambda: floats(
            5, cols, lambda y: kernels.layernorm(array(x), 5, array(weight[None]), array(bias[None]), 1e-6, y)
        )
    )
    np.testing.assert_allclose(found, reference.layernorm(x, weight, bias, 1e-6), atol=3e-5)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu"])
def test_gelu_is_the_reference(kind):
    x = np.concatenate([np.linspace(-20, 20, 3001), [0.0, -0.0, 1e-30, -1e-30, 100, -100, 1e30, -1e30]]).astype(
        np.float32
    )
    found = everywhere(lambda: floats(1, len(x), lambda y: kernels.gelu(array(x[None]), 1, kind, y)))
    expected = reference.gelu(x, kind)
    np.testing.assert_allclose(found[0], expected, rtol=2e-6, atol=1e-7)


def test_gelu_refuses_other_names():
    with pytest.raises(ValueError, match="quick_gelu"):
        floats(1, 16, lambda y: kernels.gelu(array(np.zeros((1, 16), np.float32)), 1, "relu", y))


# Positions: one, a part of a block of 64, whole ones and more; heads that are no multiple of 16, and smaller than 16.
@pytest.mark.parametrize(
    ("queries", "positions", "heads", "dim"), [(1, 1, 1, 8), (70, 70, 3, 72), (13, 130, 2, 16), (64, 128, 1, 40)]
)
def test_attention_over_all_is_the_reference(queries, positions, heads, dim):
    rng = np.random.default_rng(dim)
    q = (3 * rng.normal(size=(queries, heads * dim))).astype(np.float32)
    k, v = rng.normal(size=(2, positions, heads * dim)).astype(np.float32)

    def run():
        out = kernels.Array(queries, heads * dim)
        kernels.attend_all(array(q), array(k), array(v), heads, dim**-0.5, 0, out)
        return out.numpy().copy()

    split = [x.reshape(len(x), heads, dim) for x in (q, k, v)]
    expected = reference.attend_all(*split, dim**-0.5).reshape(queries, -1)
    np.testing.assert_allclose(everywhere(run), expected, atol=2e-5)


def test_a_row_has_the_same_bits_whatever_is_beside_it():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 100, 72)).astype(np.float32)

    def run(begin, end):
        out = kernels.Array(end - begin, 72)
        kernels.attend_all(array(q[begin:end]), array(k), array(v), 1, 0.1, 0, out)
        return out.numpy().copy()

    whole = run(0, 100)
    for begin, end in ((0, 1), (1, 8), (8, 71), (71, 100)):
        np.testing.assert_array_equal(run(begin, end), whole[begin:end])


@pytest.mark.parametrize("window", [1, 4, 64])
def test_attention_in_windows_is_the_reference(window):
    rng = np.random.default_rng(window)
    q, k, v = rng.normal(size=(3, 2 * window, 3 * 24)).astype(np.float32)

    def run():
        out = kernels.Array(len(q), 72)
        kernels.attend_all(array(q), array(k), array(v), 3, 24**-0.5, window, out)
        return out.numpy().copy()

    split = [x.reshape(len(x), 3, 24) for x in (q, k, v)]
    expected = reference.attend_all(*split, 24**-0.5, window).reshape(len(q), -1)
    np.testing.assert_allclose(everywhere(run), expected, atol=2e-5)


def test_parts_of_an_array_are_the_same_memory():
    whole = array(np.arange(40, dtype=np.float32).reshape(4, 10))
    part = whole.part(1, 2, 3, 5)
    np.testing.assert_array_equal(part.numpy(), whole.numpy()[1:3, 3:8])
    part.numpy()[:] = -1
    assert (whole.numpy()[1:3, 3:8] == -1).all()
    for wrong in ((0, 5, 0, 10), (-1, 1, 0, 1), (4, 1, 0, 1), (0, 1, 6, 5), (0, 0, 0, 1)):
        with pytest.raises(ValueError, match="part"):
            whole.part(*wrong)


def test_attention_refuses_shapes_that_differ():
    x = array(np.zeros((6, 48), np.float32))
    for q, k, v, heads, window, out in (
        (x, x, x, 5, 0, x), (x, x.part(0, 5, 0, 48), x, 3, 0, x), (x, x, x, 3, 4, x), (x, x, x, 3, 0, x.part(0, 6, 0, 32))
    ):  # fmt: skip
        with pytest.raises(ValueError, match="attend_all"):
            kernels.attend_all(q, k, v, heads, 1.0, window, out)
