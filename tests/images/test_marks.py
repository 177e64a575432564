"""Where rows of pictures stand in a prompt: each row's own texts, as official code writes them."""

import itertools

import numpy as np
import pytest

from gangpao.formats.vision import VISION, Marks, downsampled
from gangpao.images import marks, slices

V46, V47 = VISION["minicpm-v-4.6"], VISION["minicpm-v-4.7"]


def text(parts, piece="{}"):
    return "".join(part if isinstance(part, str) else piece for part in parts)


def test_each_row_writes_its_own_marks():
    whole, cut = slices.sizes(100, 100, VISION["minicpm-v-2"]), slices.sizes(800, 600, VISION["minicpm-v-2"])
    for name in ("minicpm-v-1", "minicpm-v-2"):
        assert marks.layout(whole, VISION[name].marks, 4) == ["<image>", 0, "</image>\n"]
    assert marks.layout(cut, VISION["minicpm-v-2"].marks, 0) == [
        "<image>", 0, "</image><slice><image>", 1, "</image><image>", 2, "</image>\n<image>", 3, "</image><image>", 4,
        "</image></slice>\n",
    ]  # fmt: skip
    for name in ("minicpm-v-2.6", "minicpm-v-4", "minicpm-v-4.5", "minicpm-v-4.6", "minicpm-v-4.7"):
        assert marks.layout(cut, VISION[name].marks, 12) == [
            "<image_id>12</image_id><image>", 0, "</image><slice>", 1, "</slice><slice>", 2, "</slice>\n<slice>", 3,
            "</slice><slice>", 4, "</slice>\n",
        ]  # fmt: skip
        assert marks.layout(whole, VISION[name].marks, None) == ["<image>", 0, "</image>\n"]
    assert marks.layout(whole, VISION["omnilmm-12b"].marks, 0) == ["<im_start>", 0, "<im_end>\n"]
    assert marks.layout(whole, VISION["llava"].marks, 0) == [0]


def test_every_piece_stands_once_and_in_order():
    for size in ((449, 448), (1920, 1080), (3000, 300), (1344, 1344), (64, 64)):
        for row in VISION.values():
            plan = slices.sizes(*size, row)
            parts = marks.layout(plan, row.marks, 7)
            assert [part for part in parts if isinstance(part, int)] == list(range(len(plan.tokens)))
            assert "" not in parts
            assert not any(isinstance(a, str) and isinstance(b, str) for a, b in itertools.pairwise(parts))


def test_videos_have_one_number_or_none():
    frames = [slices.sizes(100, 100, V46), slices.sizes(500, 500, V46)]
    assert marks.video(frames, V46.marks, 2) == [
        "<image_id>2</image_id><image>", (0, 0), "</image><image>", (1, 0), "</image><slice>", (1, 1), "</slice>\n<slice>", (1, 2),
        "</slice>\n",
    ]  # fmt: skip
    for name in ("minicpm-v-2.6", "minicpm-v-4.5", "minicpm-v-4.7"):
        parts = marks.video([frames[0]] * 2, VISION[name].marks, 2)
        between = "" if name == "minicpm-v-4.7" else "\n"  # frames of older ones are pictures on lines of their own
        assert parts == ["<image>", (0, 0), f"</image>{between}<image>", (1, 0), "</image>\n"]
    assert marks.video([], V46.marks, None) == ["\n"]


def test_counts_do_not_count_marks():
    assert marks.tokens_of(slices.sizes(1344, 1344, VISION["minicpm-v-2"])) == 640
    assert marks.tokens_of(slices.sizes(448, 448, V46)) == 64
    assert marks.tokens_of(slices.sizes(448, 448, downsampled(V46, "4x"))) == 256


class Words:
    """A tokenizer that is only asked for the texts of its marks and gives back what it gets."""

    image_token, video_token = "<|image_pad|>", "<|video_pad|>"
    image_token_id, video_token_id = 1, 2
    image_start_token, image_end_token = "<image>", "</image>"
    slice_start_token, slice_end_token = "<slice>", "</slice>"
    image_id_start_token, image_id_end_token = "<image_id>", "</image_id>"


def processor(module, images):
    """An official processor without tokenizer and torch: what it needs to write texts."""
    made = object.__new__(module)
    made.image_processor = images
    made.slice_mode = made.video_slice_mode = True
    for name in vars(Words):
        if not name.startswith("__"):
            setattr(made, name, getattr(Words, name))
    return made


@pytest.mark.parametrize("version", ["6", "7"])
def test_4_6_and_4_7_write_what_transformers_writes(version):
    name = f"minicpmv4_{version}"
    module = pytest.importorskip(f"transformers.models.{name}.processing_{name}")
    pil = pytest.importorskip("transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6")
    official = processor(getattr(module, f"MiniCPMV4_{version}Processor"), pil.MiniCPMV4_6ImageProcessorPil())
    row = VISION[f"minicpm-v-4.{version}"]
    pictures = [np.zeros((h, w, 3), np.uint8) for w, h in ((300, 200), (640, 480), (500, 500), (900, 1300))]
    processed = official.image_processor(images=pictures, input_data_format="channels_last", return_tensors="np")
    texts = [official.replace_image_token(processed, image_idx=i, image_token_divisor=16) for i in range(len(pictures))]
    texts = official._prepend_local_ids(["<|image_pad|>" * len(pictures)], texts, "<|image_pad|>")
    for number, (picture, expected) in enumerate(zip(pictures, texts, strict=True)):
        plan = slices.sizes(picture.shape[1], picture.shape[0], row)
        parts = marks.layout(plan, row.marks, number)
        ours = "".join(part if isinstance(part, str) else "<|image_pad|>" * plan.tokens[part] for part in parts)
        assert ours == expected + "\n"

    frames = [slices.sizes(500, 500, row)] * 3
    video = {
        "target_sizes_videos": np.array([grid for frame in frames for grid in frame.grids]),
        "num_frames_per_video": [3],
        "grids_videos": np.array([(frame.rows, frame.columns) for frame in frames]),
    }
    expected = official.replace_video_token(video, video_idx=0, video_token_divisor=16)
    (expected,) = official._prepend_local_ids(["<|video_pad|>"], [expected], "<|video_pad|>")
    parts = marks.video(frames, row.marks, 0)
    ours = "".join(
        part if isinstance(part, str) else "<|video_pad|>" * frames[part[0]].tokens[part[1]] for part in parts
    )
    assert ours == expected + "\n"


def test_marks_of_ones_own():
    own = Marks(image=("[", "]"), slice=("(", ")"), row="/", slices=("{", "}"), behind=".")
    plan = slices.sizes(800, 600, VISION["minicpm-v-2"])
    assert text(marks.layout(plan, own, 3), "x") == "[x]{(x)(x)/(x)(x)}."
