import pytest

from gangpao.compress.prune.shape import Shape, ffn_for, head_choices, pruned_config, resolve, steps_down, total
from gangpao.model.config import PRESETS
from tests.model.tiny import KINDS, tiny

SMOL, MINI = PRESETS["smollm2-135m"], PRESETS["minicpm-1b"]


@pytest.mark.parametrize(
    ("wanted", "found"), [(0.5, 768), (1.0, 1536), (96, 96), (None, 1536), (0.001, 32), (0.34, 512)]
)
def test_shares_go_to_the_nearest_multiple_and_numbers_are_numbers(wanted, found):
    assert resolve("ffn", wanted, 1536, 32) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (700, "672 and 704"),
        (1537, "1 to 1536"),
        (0, "1 to 1536"),
        (1.5, "0.0 < share <= 1.0"),
        (-0.5, "share"),
        (20, "32 "),
    ],
)
def test_what_is_impossible_is_refused_with_what_is_possible(wanted, words):
    with pytest.raises(ValueError, match=words):
        resolve("ffn", wanted, 1536, 32)


def test_a_width_that_is_no_multiple_has_no_multiple():
    assert resolve("ffn", 51, 100, 32) == 51


def test_heads_keep_groups_equal():
    assert head_choices(SMOL, 6, None) == [(6, 2), (6, 3)]
    assert head_choices(SMOL, 6, 3) == [(6, 3)]
    assert head_choices(SMOL, None, 2) == [(6, 2)]
    assert head_choices(SMOL, None, None) == [(9, 3)]
    assert head_choices(SMOL, 0.5, None) == [(4, 2)]
    for choice in (5, 7, 8):
        with pytest.raises(ValueError, match="possible are 1, 2, 3, 4, 6, 9"):
            head_choices(SMOL, choice, None)
    with pytest.raises(ValueError, match="possible are 3, 6, 9"):
        head_choices(SMOL, 4, 3)


def test_constants_follow_the_shape():
    small = pruned_config(MINI, Shape(13, 1920, 12, 4, 768))
    assert small.residual_scale == pytest.approx(MINI.residual_scale, rel=1e-12)
    assert small.logit_scale == pytest.approx(MINI.logit_scale)  # 256 * 768 / 1536 is whole
    assert small.rms_norm_eps == 2 * MINI.rms_norm_eps
    assert (small.head_dim, small.rope_theta) == (MINI.head_dim, MINI.rope_theta)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_shape_is_the_model(kind):
    c = tiny(kind)
    assert pruned_config(c, Shape.of(c)) == c


def test_the_ffn_takes_what_is_left():
    shape = Shape(24, 1536, 9, 3, 576)
    found = ffn_for(SMOL, shape, 80_000_000, 32)
    assert found is not None
    counts = [total(SMOL, Shape(24, ffn, 9, 3, 576)) for ffn in (found, found + 32)]
    assert counts[0] <= 80_000_000 < counts[1]
    assert ffn_for(SMOL, shape, 40_000_000, 32) is None


def test_steps_go_down_in_eighths():
    assert list(steps_down(576, 32, 0.5)) == [576, 512, 448, 352, 288]
    assert list(steps_down(6, 1, 0.5)) == [6, 5, 4, 3]
