"""Cutting pictures: MiniCPM-V 2.0's arithmetic as its official code gave it, later ones against transformers, pixels bit by bit."""

import math
import random
from dataclasses import replace

import numpy as np
import PIL
import pytest
from PIL import Image

from gangpao.formats.vision import VISION, downsampled
from gangpao.images import marks, slices

V2, V46 = VISION["minicpm-v-2"], VISION["minicpm-v-4.6"]

# Made by running the official image_processing_minicpmv.py of MiniCPM-V 2.0: (size), overview, (columns, rows), refined, slice,
# patches of overview and slice as width x height, rows of the language model, special tokens, line breaks between slices.
OFFICIAL = [
    ((100, 100), (448, 448), (0, 0), (0, 0), (0, 0), (32, 32), None, 64, 2, 0),
    ((336, 336), (448, 448), (0, 0), (0, 0), (0, 0), (32, 32), None, 64, 2, 0),
    ((448, 448), (448, 448), (0, 0), (0, 0), (0, 0), (32, 32), None, 64, 2, 0),
    ((300, 200), (546, 364), (0, 0), (0, 0), (0, 0), (39, 26), None, 64, 2, 0),
    ((900, 100), (1344, 154), (0, 0), (0, 0), (0, 0), (96, 11), None, 64, 2, 0),
    ((449, 448), (448, 448), (2, 1), (644, 630), (322, 630), (32, 32), (23, 45), 192, 8, 0),
    ((500, 500), (448, 448), (1, 2), (630, 644), (630, 322), (32, 32), (45, 23), 192, 8, 1),
    ((640, 480), (518, 392), (2, 1), (728, 546), (364, 546), (37, 28), (26, 39), 192, 8, 0),
    ((672, 448), (546, 364), (2, 1), (784, 518), (392, 518), (39, 26), (28, 37), 192, 8, 0),
    ((800, 600), (518, 392), (2, 2), (1036, 784), (518, 392), (37, 28), (37, 28), 320, 12, 1),
    ((1024, 768), (518, 392), (2, 2), (1036, 784), (518, 392), (37, 28), (37, 28), 320, 12, 1),
    ((1280, 720), (602, 336), (3, 2), (1470, 812), (490, 406), (43, 24), (35, 29), 448, 16, 1),
    ((1920, 1080), (602, 336), (4, 2), (1680, 952), (420, 476), (43, 24), (30, 34), 576, 20, 1),
    ((1080, 1920), (336, 602), (2, 4), (952, 1680), (476, 420), (24, 43), (34, 30), 576, 20, 3),
    ((1344, 1344), (448, 448), (3, 3), (1344, 1344), (448, 448), (32, 32), (32, 32), 640, 22, 2),
    ((4000, 3000), (518, 392), (3, 3), (1554, 1176), (518, 392), (37, 28), (37, 28), 640, 22, 2),
    ((3000, 300), (1414, 140), (6, 1), (3444, 350), (574, 350), (101, 10), (41, 25), 448, 16, 0),
    ((20, 225), (140, 1498), (0, 0), (0, 0), (0, 0), (10, 107), None, 64, 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("row", OFFICIAL, ids=lambda row: "x".join(map(str, row[0])))
def test_the_worked_examples_of_v2(row):
    size, overview, grid, refined, cell, first, others, rows, special, breaks = row
    plan = slices.sizes(*size, V2)
    assert (plan.overview, (plan.columns, plan.rows), plan.refined, plan.cell) == (overview, grid, refined, cell)
    assert plan.grids == (first[::-1],) + ((others[::-1],) * (grid[0] * grid[1]) if others else ())
    assert (marks.tokens_of(plan), set(plan.tokens)) == (rows, {64})
    text = "".join(part for part in marks.layout(plan, V2.marks, None) if isinstance(part, str))
    assert text.count("<") == special
    assert text.count("\n") == breaks + 1  # one behind the picture


def by_the_facts(width, height):
    """V 2.0's rule once more, slowly, as the official code was described: overview, grid, refined."""
    side, step, most = 448, 14, 9

    def multiple(x, m):
        return max(round(x / m) * m, m)

    def fit(w, h, up):
        if w * h > side * side or up:
            r = w / h
            h = int(side / math.sqrt(r))
            w = int(h * r)
        return multiple(w, step), multiple(h, step)

    n = min(math.ceil(width * height / (side * side)), most)
    if n <= 1:
        return fit(width, height, True), (0, 0), (0, 0)
    grids = [
        (columns, k // columns)
        for k in (n - 1, n, n + 1)
        if 1 < k <= most
        for columns in range(1, k + 1)
        if k % columns == 0
    ]
    columns, rows = min(grids, key=lambda g: abs(math.log(width / height) - math.log(g[0] / g[1])))
    cell = fit(multiple(width, columns) / columns, multiple(height, rows) / rows, True)
    return fit(width, height, False), (columns, rows), (cell[0] * columns, cell[1] * rows)


def sizes_of(seed, count):
    """Sizes of all scales; none narrower than 1 : 250, which is refused for some rows."""
    draw = random.Random(seed)
    found = []
    while len(found) < count:
        width, height = int(2 ** draw.uniform(0, 13)), int(2 ** draw.uniform(0, 13))
        if max(width, height) <= 250 * min(width, height):
            found.append((width, height))
    return found


@pytest.mark.parametrize("name", ["minicpm-v-2", "minicpm-v-2.6", "minicpm-v-4", "minicpm-v-4.5"])
def test_ten_thousand_sizes_of_the_resamplers(name):
    count = 10_000 if name == "minicpm-v-2" else 500  # the others have the same rule
    for width, height in [*sizes_of(1, count), (497, 1278)]:
        plan = slices.sizes(width, height, VISION[name])
        assert (plan.overview, (plan.columns, plan.rows), plan.refined) == by_the_facts(width, height)


@pytest.fixture(scope="module")
def official():
    module = pytest.importorskip("transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6")
    return module.MiniCPMV4_6ImageProcessorPil()


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("name", ["minicpm-v-4.6", "minicpm-v-4.7"])
def test_ten_thousand_sizes_of_4_6(official, mode, name):
    row = downsampled(VISION[name], mode)
    for width, height in sizes_of(2, 10_000 if name == "minicpm-v-4.6" else 500):
        grid = official.get_sliced_grid((height, width), 9, 448)
        overview = official.find_best_resize((height, width), 448, 14, mode, allow_upscale=grid is None)
        refined = official.get_refine_size((height, width), grid, 448, 14, mode, True) if grid else (0, 0)
        plan = slices.sizes(width, height, row)
        assert (plan.rows, plan.columns) == tuple(grid or (0, 0))
        assert (plan.overview[::-1], plan.refined[::-1]) == (overview, refined)
        assert plan.tokens == tuple(rows * columns // (4 if mode == "4x" else 16) for rows, columns in plan.grids)


FORTY = [
    (1, 1), (1, 2), (2, 1), (3, 5), (7, 100), (13, 14), (14, 14), (20, 225), (56, 56), (57, 55), (100, 100), (100, 900),
    (150, 200), (200, 150), (224, 224), (300, 200), (300, 4000), (320, 240), (333, 517), (336, 336), (447, 449), (448, 448),
    (449, 448), (448, 449), (497, 1278), (500, 500), (512, 512), (600, 800), (640, 480), (672, 448), (720, 1280), (800, 600),
    (900, 100), (1024, 768), (1080, 300), (1280, 720), (1344, 1344), (1500, 700), (3000, 300), (4000, 300),
]  # fmt: skip


def in_two_passes(image, size, resample=None, **_):
    """What the official resize does with Pillow 12 and older: horizontally, then vertically."""
    picture = Image.fromarray(image.transpose(1, 2, 0))
    picture = picture.resize((size.width, picture.height), Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((size.width, size.height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def flat(pieces, patch=14):
    """Patches as transformers lays them: [1, 3, patch, patch * patches]."""
    whole = np.concatenate([piece.values for piece in pieces.pieces]).reshape(-1, 3, patch, patch)
    return whole.transpose(1, 2, 0, 3).reshape(1, 3, patch, -1)


@pytest.mark.parametrize("size", FORTY, ids=lambda size: "x".join(map(str, size)))
def test_forty_sizes_have_the_official_pixels(official, monkeypatch, size):
    pixels = np.random.default_rng(size[0] + size[1]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    mode = "4x" if size[0] % 2 else "16x"
    found = slices.pieces(pixels, downsampled(V46, mode))
    options = {"input_data_format": "channels_last", "downsample_mode": mode, "return_tensors": "np"}
    expected = official(images=[pixels], **options)
    if PIL.__version__ >= "13" and size[1] > size[0]:
        # Pillow 13 goes vertically first for some of these: less than a level of 255 in the mean, none in the order of Pillow 12.
        assert np.abs(flat(found) - expected["pixel_values"]).mean() < 1 / 127.5
        monkeypatch.setattr(official, "resize", in_two_passes)
        expected = official(images=[pixels], **options)
    np.testing.assert_array_equal(flat(found), expected["pixel_values"])
    assert [list(piece.grid) for piece in found.pieces] == expected["target_sizes"].tolist()
    assert [found.rows, found.columns] == list(expected["grids"][0])


def test_a_square_loses_its_aspect():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8)
    for name, rows in (("minicpm-v-1", 64), ("omnilmm-12b", 64), ("llava", 1024)):
        row = VISION[name]
        found = slices.pieces(pixels, row)
        assert (found.columns, found.rows, len(found.pieces), found.tokens) == (0, 0, 1, (rows,))
        picture = np.asarray(Image.fromarray(pixels).resize((448, 448), Image.Resampling.BICUBIC), np.float64)
        expected = (picture / 255 - row.pixels.mean) / row.pixels.std
        np.testing.assert_allclose(flat(found)[0, :, :, :14], expected[:14, :14].transpose(2, 0, 1), atol=1e-6)
        np.testing.assert_allclose(flat(found)[0, :, :, -14:], expected[-14:, -14:].transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(30, 17), (300, 170), (64, 64), (64, 20), (20, 170), (1, 1), (257, 255)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_resizing_in_strips_is_pillows(monkeypatch, size, resample):
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = Image.fromarray(pixels).resize((size[0], 64), Image.Resampling[resample.upper()])
    expected = np.asarray(expected.resize(size, Image.Resampling[resample.upper()]))
    for strip in (1 << 20, 1000, 1):
        monkeypatch.setattr(slices, "_STRIP", strip)
        np.testing.assert_array_equal(slices.resized(pixels, *size, resample), expected)


# --- bounds


@pytest.mark.parametrize(
    ("size", "most", "words"),
    [
        ((0, 5), None, "0 x 5 pixels has none"), ((5, -1), None, "has none"), ((16_384, 1), None, "too narrow for minicpm-v-4.6"),
        ((1, 10**6), None, "too narrow"), ((500, 500), 0, "1 to 64 slices, not 0"), ((500, 500), 65, "not 65"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_said(size, most, words):
    with pytest.raises(ValueError, match=words):
        slices.sizes(*size, V46, max_slices=most)


@pytest.mark.parametrize(
    "bad",
    [
        {"resolution": 10**6}, {"resolution": 0}, {"resolution": 5}, {"multiple": 0}, {"multiple": 13}, {"multiple": 28},
        {"rule": "square", "resolution": 440}, {"multiple": -56}, {"max_slices": 10**6}, {"max_slices": 0},
    ],
)  # fmt: skip
def test_senseless_numbers_of_a_file_are_refused(bad):
    with pytest.raises(ValueError, match=r"cannot be|no multiple|1 to 64 slices"):
        slices.sizes(640, 480, replace(V46, slicing=replace(V46.slicing, **bad)))


@pytest.mark.parametrize("patch", [0, -14, 449, 16, 4, 6])
def test_a_patch_that_fits_nothing_is_refused(patch):
    with pytest.raises(ValueError, match=r"cannot be|no multiple"):
        slices.sizes(640, 480, replace(V46, encoder=replace(V46.encoder, patch_size=patch)))


@pytest.mark.parametrize("name", sorted(VISION))
@pytest.mark.parametrize(
    "size", [(16_384, 2_441), (2_441, 16_384), (6_324, 6_324), (16_384, 100), (1, 1), (33, 16_384)]
)
def test_the_largest_pictures_stay_within_their_bounds(name, size):
    row = VISION[name]
    plan = slices.sizes(*size, row)
    assert 1 <= len(plan.grids) == len(plan.tokens) <= 1 + row.slicing.max_slices
    assert all(1 <= h * w <= slices.MAX_PATCHES for h, w in plan.grids)
    assert marks.tokens_of(plan) <= 2000


def test_pixels_of_another_form_are_refused():
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
            slices.pieces(bad, V2)
    with pytest.raises(ValueError, match="has none"):
        slices.pieces(np.zeros((0, 4, 3), np.uint8), V2)


def test_fewer_slices_may_be_asked_for():
    assert len(slices.sizes(1344, 1344, V2, max_slices=4).grids) == 5
    assert len(slices.sizes(1344, 1344, V2, max_slices=1).grids) == 1
    assert len(slices.sizes(4000, 4000, V2, max_slices=36).grids) == 37
    with pytest.raises(ValueError, match="one downsample mode"):
        downsampled(V2, "4x")
