"""Rotary angles: right to the last bit of float32 nearly everywhere, and the same bits on every machine."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest

from gangpao.engine import exact
from gangpao.engine.rope import Angles, cosines_and_sines
from tests.engine.plain_numpy import printed_by


def test_cosines_and_sines_are_right():
    """Against the C library's doubles, over all quadrants and up to positions of a million."""
    random = np.random.default_rng(0)
    angles = np.concatenate(
        [[0.0], random.random(20_000) * 7, random.random(20_000) * 2.0**20, np.arange(2_000.0) * (math.pi / 4)]
    )
    cos, sin = cosines_and_sines(angles)
    for ours, theirs in ((cos, [math.cos(a) for a in angles]), (sin, [math.sin(a) for a in angles])):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)
        assert (ours.astype(np.float32) == np.asarray(theirs, np.float32)).mean() > 0.9999


def test_powers_and_logarithms_are_right():
    for base in (10000.0, 5e6, 1.5):
        for i in range(32):
            assert exact.power(base, Fraction(-i, 32)) == pytest.approx(base ** (-i / 32), rel=2e-15)
        assert exact.log(base) == pytest.approx(math.log(base), rel=1e-15)


@pytest.mark.parametrize("step", [1, 7, 300])
def test_angles_do_not_depend_on_the_way_to_them(step):
    inverse, out = 10000.0 ** (-np.arange(8) / 8), []
    whole = Angles(inverse, 0.9)
    positions = np.arange(1500)
    for angles, at in ((whole, [positions]), (Angles(inverse, 0.9), np.array_split(positions, len(positions) // step))):
        parts = [(np.empty((len(p), 8), np.float32), np.empty((len(p), 8), np.float32)) for p in at]
        for p, (cos, sin) in zip(at, parts, strict=True):
            angles.take(p, cos, sin)
        out.append([np.concatenate(half) for half in zip(*parts, strict=True)])
    assert (np.array(out[0]) == np.array(out[1])).all()
    np.testing.assert_allclose(out[0][0], 0.9 * np.cos(positions[:, None] * inverse), atol=1e-7)


def angles_digest():
    """Of 100,000 angles of five bases: one number that all machines must agree on."""
    out = hashlib.sha256()
    for theta in (10000.0, 1e6, 5e6, 500000.0, 777.0):
        inverse = np.array([exact.power(theta, Fraction(-i, 32)) for i in range(32)])
        cos, sin = np.empty((2, 320, 32), np.float32)
        Angles(inverse, 1.1).take(np.arange(320) * 97, cos, sin)
        out.update(cos.tobytes() + sin.tobytes())
    return out.hexdigest()


DIGEST = "b51bb16a73cd65b4724477fa93b436d4a84281d9572f990dc7e8a2944fec9d27"


def test_angles_have_the_same_bits_on_every_machine():
    assert angles_digest() == DIGEST


def test_angles_do_not_depend_on_instruction_sets_of_numpy():
    """What numpy itself takes for cosines does, on processors with AVX-512."""
    assert printed_by(__file__, "angles_digest") == DIGEST
