"""Positions on the canvas: by hand for one picture, and equal to transformers' for many prompts."""

from itertools import pairwise

import numpy as np
import pytest

from gangpao.images.canvas import Crop, MarkIds, canvas

MARKS = MarkIds(1, 2, 3, 4, 5)
SEEN = 99


def prompt(rng: np.random.Generator, pictures: int) -> tuple[list[int], list[Crop]]:
    """Text, pictures with and without slices, some side by side, in the order of the marks."""
    ids: list[int] = list(rng.integers(10, 90, rng.integers(0, 4)))
    crops: list[Crop] = []

    def crop(before: int, rows: int, columns: int, after: int) -> None:
        ids.append(before)
        crops.append(Crop(len(ids), rows, columns))
        ids.extend([SEEN] * rows * columns + [after])

    for _ in range(pictures):
        rows, columns = (int(n) for n in rng.integers(1, 7, 2))
        crop(MARKS.image_start, rows, columns, MARKS.image_end)
        if rng.random() < 0.6:
            down, across = (int(n) for n in rng.integers(1, 4, 2))
            height, width = (int(n) for n in rng.integers(1, 6, 2))
            for i in range(down):
                for _ in range(across):
                    crop(MARKS.slice_start, height, width, MARKS.slice_end)
                if i < down - 1:
                    ids.append(MARKS.newline)
        if rng.random() < 0.7:
            ids.extend(int(n) for n in rng.integers(5, 90, rng.integers(1, 5)))
    return [int(n) for n in ids], crops


def test_a_sliced_picture_by_hand() -> None:
    """Overview of 1 x 2 over a canvas of 2 x 2, made of two slices of 1 x 2, one above the other."""
    ids = [50, 1, 99, 99, 2, 3, 99, 99, 4, 5, 3, 99, 99, 4, 51, 52]
    found = canvas(ids, [Crop(2, 1, 2), Crop(6, 1, 2), Crop(11, 1, 2)], MARKS)
    assert found.T.tolist() == [
        [0, 0, 0],  # text
        [1, 0, 0], [1, 1, 1], [1, 1, 2], [1, 3, 3],  # <image>, its tokens, </image> behind the canvas
        [1, 1, 1], [1, 1, 1], [1, 1, 2], [1, 1, 2],  # the upper slice between its marks
        [1, 1, 3],  # the line break, right of the row
        [1, 2, 1], [1, 2, 1], [1, 2, 2], [1, 2, 2],
        [4, 4, 4], [5, 5, 5],  # text behind the longer side
    ]  # fmt: skip


def test_text_alone_counts() -> None:
    assert canvas([7, 8, 9], [], MARKS).tolist() == [[0, 1, 2]] * 3
    assert canvas([], [], MARKS).shape == (3, 0)


@pytest.mark.parametrize("crop", [Crop(0, 1, 1), Crop(3, 2, 2), Crop(2, 0, 2)], ids=["no mark", "outside", "empty"])
def test_crops_that_do_not_fit_are_refused(crop: Crop) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        canvas([1, 2, 3, 4, 5], [crop], MARKS)


def test_positions_equal_the_official_ones() -> None:
    """transformers' get_rope_index on 150 random prompts of up to four pictures, both ways of joining patches."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.minicpmv4_7.modeling_minicpmv4_7")
    peer = object.__new__(module.MiniCPMV4_7Model)
    torch.nn.Module.__init__(peer)
    names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
    said = dict(zip(names, (1, 2, 3, 4, 5), strict=True)) | {"downsample_mode": "16x"}
    peer.config = type("Config", (), said)()
    rng = np.random.default_rng(17)
    for i in range(150):
        ids, crops = prompt(rng, 1 + i % 4)
        assert all(a.end < b.start for a, b in pairwise(crops))
        kinds = [int(token == SEEN) for token in ids]
        mode, factor = ("16x", 4) if i % 2 else ("4x", 2)
        theirs, delta = module.MiniCPMV4_7Model.get_rope_index(
            peer, torch.tensor([ids]), torch.tensor([kinds]),
            torch.tensor([[crop.rows * factor, crop.columns * factor] for crop in crops]), downsample_mode=mode,
        )  # fmt: skip
        ours = canvas(ids, crops, MARKS)
        assert np.array_equal(ours, theirs[:, 0].numpy()), (ids, crops)
        assert int(ours.max()) + 1 == len(ids) + int(delta[0, 0])
