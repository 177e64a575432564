"""Gated DeltaNet on every instruction set: equal to the definition, and the same bits however a text is cut, kept or taken back."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.kernels import reference

HEADS = 2, 4, 16, 80  # key and value heads, their widths: 64 columns and 16 at once
TAPS, TOKENS, EPS = 4, 40, 1e-5
CHANNELS, VALUES = 2 * 2 * 16 + 4 * 80, 4 * 80
WIDTH = CHANNELS + VALUES + 2 * 4


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    a = -np.exp(rng.uniform(-3, 1, 4)).astype(np.float32)
    return normal(TOKENS, WIDTH), (normal(TAPS, CHANNELS), a, normal(4), normal(VALUES // 4), EPS)


class Text:
    """Tokens through a state of their own, some at a time."""

    def __init__(self, x, numbers, slots=4):
        self.x, self.spec = x, kernels.delta_spec(*HEADS, *numbers)
        self.states = kernels.States(2, *HEADS, TAPS, slots)
        self.rows = kernels.Array(TOKENS, WIDTH)
        self.rows.numpy()[:] = x

    def run(self, begin, end, source, commits, log=None, logged=0):
        rows = kernels.StateRows()
        part = kernels.Array(TOKENS + 3, WIDTH)
        part.numpy()[3 : 3 + end - begin] = self.x[begin:end]
        rows.add(3, end - begin, source, commits, log, TOKENS if log else 0, logged)
        out, act = kernels.Array(TOKENS + 3, VALUES), kernels.Activation(TOKENS + 3, VALUES, [], True)
        kernels.delta_net(part, rows, self.spec, self.states, 1, out, act)
        return act.floats()[3 : 3 + end - begin].copy()


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_it_is_the_definition(isa, numbers):
    kernels.set_isa(isa)
    x, rest = numbers
    found = Text(x, rest).run(0, TOKENS, -1, [(TOKENS, 0)])
    expected = reference.gated_delta(x, HEADS, *rest)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_every_way_through_gives_the_same_bits(numbers):
    x, rest = numbers
    whole = None
    for isa in kernels.available_isas():
        for threads in (1, 3):
            kernels.set_isa(isa)
            kernels.set_num_threads(threads)
            text = Text(x, rest)
            found = text.run(0, TOKENS, -1, [(TOKENS, 0)])
            whole = found if whole is None else whole
            assert np.array_equal(found, whole), (isa, threads)
            cut = [
                text.run(0, 1, -1, [(1, 1)]),
                text.run(1, 17, 1, [(4, 2), (9, 3), (16, 1)]),
                text.run(17, TOKENS, 1, [(23, 1)]),
            ]
            assert np.array_equal(np.concatenate(cut), whole)
            assert np.array_equal(text.run(5, TOKENS, 2, [(35, 1)]), whole[5:])  # from what was kept behind 5
            assert np.array_equal(text.run(10, TOKENS, 3, [(30, 3)]), whole[10:])


def test_drafts_change_nothing_until_they_are_right(numbers):
    x, rest = numbers
    text = Text(x, rest)
    whole = text.run(0, TOKENS, -1, [(TOKENS, 0)])
    log = kernels.Array(2 * TOKENS, WIDTH)
    log.numpy()[TOKENS : TOKENS + 6] = x[11:17]
    text.run(0, 10, -1, [(10, 0)])
    assert np.array_equal(text.run(10, 17, 0, [(1, 0)]), whole[10:17])  # the state holds 11 tokens, 6 are in the log
    for right in (6, 2, 0):
        again = text.run(11 + right, TOKENS, 0, [(TOKENS - 11, 1)], log, right)
        assert np.array_equal(again, whole[11 + right :]), right


def test_the_gate_of_attention_is_the_definition(numbers):
    x = numbers[0]
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        left, right = kernels.Array(TOKENS, 64), kernels.Array(TOKENS, 96)
        left.numpy()[:], right.numpy()[:] = x[:, :64], 3 * x[:, 64:160]
        act = kernels.Activation(TOKENS, 64, [], True)
        kernels.sigmoid_gate(left, right, 32, TOKENS, act)
        np.testing.assert_allclose(
            act.floats(), reference.sigmoid_gate(x[:, :64], 3 * x[:, 96:160]), rtol=1e-5, atol=1e-7
        )


def test_gelu_and_norms_behind_branches_are_the_definition(numbers):
    x, first = 3 * numbers[0], []
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        rows, act = kernels.Array(TOKENS, 96), kernels.Activation(TOKENS, 48, [], True)
        rows.numpy()[:] = x[:, :96]
        kernels.geglu(rows, TOKENS, act)
        np.testing.assert_allclose(act.floats(), reference.geglu(x[:, :96]), rtol=1e-5, atol=1e-6)
        branch, out, weight = kernels.Array(TOKENS, 96), kernels.Array(TOKENS, 96), kernels.Array(1, 96)
        branch.numpy()[:], out.numpy()[:], weight.numpy()[:] = x[:, :96], x[:, 96:192], x[0, 200:296]
        kernels.add_normed(branch, TOKENS, weight, EPS, out)
        expected = x[:, 96:192] + reference.rmsnorm(x[:, :96], x[0, 200:296], EPS)
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)
        first.append(np.concatenate([act.floats(), out.numpy()], axis=1))
    assert all(np.array_equal(one, first[0]) for one in first)


def test_what_does_not_fit_is_refused():
    text = kernels.StateRows()
    for arguments in (
        (0, 3, -1, []),
        (0, 3, -1, [(4, 0)]),
        (0, 3, -1, [(2, 0), (1, 1)]),
        (0, 3, -1, [(3, 0)], None, 0, 1),
    ):
        with pytest.raises(ValueError, match="StateRows"):
            text.add(*arguments)
    with pytest.raises(ValueError, match="multiples of 16"):
        kernels.States(1, 2, 4, 8, 16, 4, 1)
