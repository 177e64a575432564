"""Frames in time: when they are taken, what counts as a change, and what is said where a source is none."""

import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from gangpao.images import look, video
from gangpao.images.decode import animation, decode
from tests.images.made import COLOURS, written


def colours(count, size=(20, 30)):
    return [np.full((*size, 3), (40 * i, 255 - 40 * i, 90), np.uint8) for i in range(count)]


def animated(kind, frames, **options):
    images = [Image.fromarray(frame) for frame in frames]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return written(kind, images[0], save_all=True, append_images=images[1:], **lossless, **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_every_frame_of_an_animation_with_its_time(kind):
    expected = colours(4)
    found = list(animation(look.look(animated(kind, expected, duration=[100, 500, 40, 70]))))
    assert [round(seconds, 3) for seconds, _ in found] == [0, 0.1, 0.6, 0.64]
    for (_, pixels), frame in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, frame)


def test_a_still_picture_is_one_frame():
    ((seconds, pixels),) = animation(look.look(written("PNG")))
    assert seconds == 0
    np.testing.assert_array_equal(pixels, COLOURS)


def test_long_animations_are_for_own_files_only(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(animated("GIF", colours(6) * 12, duration=50))
    with pytest.raises(ValueError, match="more than 64 frames"):
        look.look(path.read_bytes())
    assert len(list(video.frames(path, 0))) > 64
    with pytest.raises(ValueError, match="more than 3 frames"):
        look.look(path.read_bytes(), max_frames=3)


def test_frames_are_taken_at_each_multiple(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(animated("WEBP", colours(6), duration=[400, 400, 400, 1900, 100, 100]))
    # They begin at 0, 0.4, 0.8, 1.2, 3.1 and 3.2 s.
    assert [round(frame.seconds, 2) for frame in video.frames(path, 1.0)] == [0, 1.2, 3.1]
    assert [round(frame.seconds, 2) for frame in video.frames(path, 0.4)] == [0, 0.4, 0.8, 1.2, 3.1, 3.2]
    assert len(list(video.frames(path, 0))) == 6


def test_a_folder_is_its_pictures_by_name(tmp_path):
    for index, frame in enumerate(colours(3)):
        (tmp_path / f"{index}.PNG").write_bytes(written("PNG", frame))
    (tmp_path / "notes.txt").write_text("x")
    found = list(video.frames(tmp_path, 2.5))
    assert [frame.seconds for frame in found] == [0, 2.5, 5]
    np.testing.assert_array_equal(found[2].pixels, colours(3)[2])
    (tmp_path / "9.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"9\.jpg: the image is not a PNG"):
        list(video.frames(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        list(video.frames(tmp_path / "empty"))


def test_changes_by_a_small_thumbnail():
    random = np.random.default_rng(0)
    changed = video.Changes()
    still = random.integers(60, 200, (480, 640, 3), dtype=np.uint8)
    noisy = np.clip(still.astype(int) + random.normal(0, 8, still.shape), 0, 255).astype(np.uint8)
    moved = still.copy()
    moved[100:300, 100:300] = 255
    assert [changed(one) for one in (still, noisy, still, moved, moved, still)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    # A slow drift counts when it has added up.
    drift = video.Changes()
    assert [drift(np.full((64, 64, 3), 3 * i, np.uint8)) for i in range(7)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]


def test_changes_of_any_size():
    for shape in ((1, 1, 3), (1, 4000, 3), (3000, 2, 3)):
        assert video.thumbnail(np.full(shape, 7, np.uint8)).shape == (32, 32)
    assert video.shrunk(np.zeros((900, 1600, 3), np.uint8), 448).shape == (336, 597, 3)
    assert video.shrunk(np.zeros((100, 160, 3), np.uint8), 448).shape == (100, 160, 3)
    assert video.shrunk(np.zeros((1, 4000, 3), np.uint8), 20).shape == (1, 1264, 3)


@dataclass
class Facts:
    total_num_frames: int
    fps: float
    duration: float


def test_a_model_is_shown_the_official_frames():
    module = pytest.importorskip("transformers.models.minicpmv4_6.video_processing_minicpmv4_6")
    official = module.MiniCPMV4_6VideoProcessor()
    draw = random.Random(3)
    for _ in range(500):
        fps, seconds = draw.choice((8, 24, 25, 29.97, 30, 60)), draw.uniform(0.2, 600)
        count = max(1, int(seconds * fps))
        most = draw.choice((1, 8, 64, 128))
        expected = official.sample_frames(Facts(count, fps, seconds), max_num_frames=most)
        # The official list may name the frame behind the last one; ours then names the last.
        assert video.sampled(count, fps, seconds, most) == [min(index, count - 1) for index in expected]


@pytest.mark.parametrize(
    "bad", [(0, 25, 1), (5, 0, 1), (5, 25, 0), (5, float("inf"), 1), (5, 25, float("nan")), (5, -1, 1)]
)
def test_a_video_without_frames_or_time_is_refused(bad):
    with pytest.raises(ValueError, match="nothing can be taken"):
        video.sampled(*bad)


# --- video files, where PyAV is installed


def movie(path, frames, fps=10):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_frames_of_a_video_file(tmp_path):
    path = tmp_path / "a.mp4"
    movie(path, [frame for frame in colours(3, (64, 96)) for _ in range(10)])
    found = list(video.frames(path, 1.0))
    assert [round(frame.seconds, 2) for frame in found] == [0, 1, 2]
    for frame, expected in zip(found, colours(3, (64, 96)), strict=True):
        assert np.abs(frame.pixels.astype(int) - expected).mean() < 6
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"no video that can be read|damaged or cut off|no picture in it"):
        list(video.frames(path))


def test_what_is_no_video_is_said(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(ValueError, match=r"a\.mp4 is no video that can be read"):
        list(video.frames(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match=r"there is no .*b\.mp4"):
        list(video.frames(tmp_path / "b.mp4"))
    with pytest.raises(ValueError, match=r"there is no /dev/video99"):
        list(video.camera("/dev/video99"))


def test_a_damaged_animation_is_named(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(animated("GIF", colours(4))[:-900])
    with pytest.raises(ValueError, match=r"a\.gif: the "):
        list(video.frames(path))


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'gangpao\[video\]'"):
        list(video.frames(tmp_path / "a.mp4"))


def test_a_gif_frame_is_the_decoded_picture():
    data = written("GIF")
    np.testing.assert_array_equal(next(iter(animation(look.look(data))))[1], decode(look.look(data)))
