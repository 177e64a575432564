"""Videos in requests: which frames are shown, what is refused, and that a damaged one ends a process and nothing else."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from gangpao.images import clips, video
from gangpao.images.decode import decode
from gangpao.images.video import Frame, Thinned
from tests.images.made import written
from tests.images.test_video import animated, colours, movie


def shown(picture):
    return [decode(one) for one in picture.clip]


def test_an_animation_by_the_second():
    expected = colours(6)
    data = animated("WEBP", expected, duration=500)
    found = clips.read(data)
    assert (found.data, found.kind) == (data, "webp")
    for ours, frame in zip(shown(found), expected[::2], strict=True):
        np.testing.assert_array_equal(ours, frame)
    assert all(one.whole for one in found.clip)
    still = clips.any_of(data)  # as a picture it is its first frame
    assert still.clip == ()


def test_a_still_picture_is_a_video_of_one_frame():
    assert len(clips.read(written("PNG")).clip) == 1


def test_long_ones_are_thinned_out_evenly():
    kept = Thinned(64)
    for second in range(1000):
        kept.add(Frame(second, np.zeros((1, 1, 3), np.uint8)))
    seconds = [frame.seconds for frame in kept.frames]
    assert 32 < len(seconds) <= 64
    assert {b - a for a, b in itertools.pairwise(seconds)} == {16}
    assert seconds[0] == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_file_is_decoded_apart(tmp_path, suffix):
    frames = [np.full((64, 96, 3), 40 * i, np.uint8) for i in range(6)]
    path = tmp_path / f"a.{suffix}"
    movie(path, list(itertools.chain.from_iterable([frame] * 10 for frame in frames)), fps=10)
    found = clips.any_of(path.read_bytes())
    assert found.kind == {"mp4": "mp4", "mkv": "webm"}[suffix]
    assert (found.width, found.height) == (96, 64)
    for ours, frame in zip(shown(found), frames, strict=True):
        assert np.abs(ours.astype(int) - frame).mean() < 3
    for ours, theirs in zip(shown(found), video.frames(path, 1.0), strict=True):
        np.testing.assert_array_equal(ours, theirs.pixels)


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    movie(path, colours(10, (64, 96)))
    data = path.read_bytes()
    with pytest.raises(ValueError, match=r"no video that can be read|damaged"):
        clips.read(data[:40])
    with pytest.raises(ValueError, match="no MP4, MOV, WebM"):
        clips.read(b"hello")
    with pytest.raises(ValueError, match="it is HEIC"):
        clips.any_of(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr(clips, "SECONDS", 0.001)
    with pytest.raises(ValueError, match="takes longer than"):
        clips.read(data)
    monkeypatch.setattr(clips.look, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        clips.read(data)


def test_more_pixels_than_may_be_decoded(monkeypatch):
    out = io.BytesIO()
    frames = [Image.new("RGB", (40, 40), (i, 0, 0)) for i in range(20)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(clips, "MAX_PIXELS", 10_000)
    with pytest.raises(ValueError, match="20 frames of 40 x 40 pixels"):
        clips.read(out.getvalue())


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(clips, "there", lambda name: False)
    with pytest.raises(ValueError, match=r"pip install 'gangpao\[video\]'"):
        clips.read(b"\0\0\0\x18ftypisom" + bytes(40))


def test_a_decoder_that_dies_is_said(monkeypatch, tmp_path):
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(clips.sys, "executable", str(dies))
    monkeypatch.setattr(clips, "there", lambda name: True)
    with pytest.raises(ValueError, match="its decoder did not end well"):
        clips.read(b"\0\0\0\x18ftypisom" + bytes(40))


def test_so_many_at_a_time():
    data = animated("GIF", colours(2), duration=1000)
    for _ in range(clips.AT_ONCE):
        clips._places.acquire()
    try:
        with pytest.raises(clips.Busy):
            clips.read(data)
    finally:
        for _ in range(clips.AT_ONCE):
            clips._places.release()
    assert len(clips.read(data).clip) == 2
