"""Frames in time: of animations, video files, folders of pictures and cameras, taken every so many seconds.

    frames(path, every)    -> Frame of a file or folder, in order of time
    camera(device, every)  -> Frame of a camera, without an end
    sampled(...)           which frames of a video MiniCPM-V 2.6 and later ones are shown
    Changes                whether a frame differs from the last one that did, by a small grey thumbnail

Video files and cameras are read by PyAV (pip install 'gangpao[video]'); animations and folders need nothing more. A frame is the
first one at or after each multiple of `every`, so no two come closer than a source has frames.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gangpao.images import look
from gangpao.images.decode import animation, decode
from gangpao.images.slices import resized

Bytes = NDArray[np.uint8]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})
MAX_FRAMES = 10_000  # of an animation
THUMBNAIL = 32  # pixels a side
CHANGED = 6.0  # levels of 255 in the mean: above the noise of cameras, below a hand that moves


@dataclass(frozen=True, slots=True)
class Frame:
    """seconds since the source began; pixels: uint8 [height, width, 3], RGB."""

    seconds: float
    pixels: Bytes


def frames(path: Path, every: float = 1.0) -> Iterator[Frame]:
    """Frames of a video file, an animation or a picture; of a folder its pictures by name, `every` seconds apart.

    Raises ValueError saying what is wrong with it: before the first frame where a file is none, at the frame where it is damaged.
    """
    if path.is_dir():
        return _folder(path, every)
    if path.suffix.lower() in PICTURES:
        return every_so_often(_animation(path), every)
    return every_so_often(_video(str(path), {}), every)


def camera(device: str, every: float = 1.0) -> Iterator[Frame]:
    """Frames of a camera of Linux (/dev/video0), from now on. Raises ValueError where there is none."""
    return every_so_often(_video(device, {"format": "v4l2"}), every)


def every_so_often(found: Iterable[Frame], every: float) -> Iterator[Frame]:
    """The first frame at or after each multiple of `every` seconds; 0: all."""
    due = -math.inf
    for frame in found:
        if frame.seconds >= due - 1e-6:
            yield frame
            due = (math.floor(frame.seconds / every + 1e-6) + 1) * every if every > 0 else -math.inf


def sampled(count: int, fps: float, seconds: float, most: int = 128) -> list[int]:
    """Which of `count` frames at `fps` a model is shown: one a second, or `most` spread over the whole where it is longer.

    MiniCPM-V 4.6's rule: `most` of the tenths of seconds. Raises ValueError for a video without frames or time.
    """
    if count < 1 or not (fps > 0 and seconds > 0 and math.isfinite(fps * seconds)) or most < 1:
        raise ValueError(f"a video of {count} frames, {fps} a second, {seconds} s: nothing can be taken of it")
    if seconds <= most:
        return [min(int(second * fps), count - 1) for second in range(math.ceil(seconds))]
    tenths = int(seconds / 0.1)
    chosen = np.linspace(0, tenths - 1, most, dtype=int) if tenths > most else range(tenths)
    return [min(int(round(int(tenth) * 0.1, 1) * fps), count - 1) for tenth in chosen]


class Changes:
    """Whether frames differ. A slow drift counts too: what is compared with is the last frame that differed, not the last one."""

    def __init__(self, least: float = CHANGED) -> None:
        self._least = least
        self._last: NDArray[np.float32] | None = None

    def __call__(self, pixels: Bytes) -> bool:
        """Whether this frame differs from the last one for which this was so; the first one does."""
        now = thumbnail(pixels)
        if self._last is not None and float(np.abs(now - self._last).mean()) < self._least:
            return False
        self._last = now
        return True


def thumbnail(pixels: Bytes) -> NDArray[np.float32]:
    """float32 [THUMBNAIL, THUMBNAIL], grey in levels of 255. Large pictures are thinned out first: it must cost nothing."""
    step = max(1, min(pixels.shape[:2]) // 256)
    small = resized(pixels[::step, ::step], THUMBNAIL, THUMBNAIL, "bilinear")
    return small.astype(np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)


def shrunk(pixels: Bytes, side: int) -> Bytes:
    """A frame of at most side x side pixels in all, its aspect kept; smaller ones as they are."""
    height, width, _ = pixels.shape
    if width * height <= side * side:
        return pixels
    scale = side / math.sqrt(width * height)
    return resized(pixels, max(1, int(width * scale)), max(1, int(height * scale)))


class Thinned:
    """At most so many of frames that come one after the other, spread over all of them: when there are more, every second one goes,
    and of those to come fewer are taken."""

    def __init__(self, most: int) -> None:
        self._most, self._step, self._seen = most, 1, 0
        self.frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Take the next frame, or not."""
        if self._seen % self._step == 0:
            self.frames.append(frame)
        self._seen += 1
        if len(self.frames) > self._most:
            del self.frames[1::2]
            self._step *= 2


def of_bytes(data: BinaryIO, kind: str) -> Iterator[Frame]:
    """All frames of a video in memory. kind: FFmpeg's name of its format, the only one that is tried. Raises ValueError."""
    return _video(data, {"format": kind}, "the video")


def _animation(path: Path) -> Iterator[Frame]:
    try:
        for seconds, pixels in animation(look.look(path.read_bytes(), max_frames=MAX_FRAMES)):
            yield Frame(seconds, pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _folder(folder: Path, every: float) -> Iterator[Frame]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"{folder} has no pictures ({', '.join(sorted(PICTURES))})")
    for index, path in enumerate(found):
        try:
            yield Frame(index * every, decode(look.look(path.read_bytes())))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _video(opened: str | BinaryIO, options: dict[str, Any], name: str = "") -> Iterator[Frame]:
    av, source = _library(), name or str(opened)
    try:
        container = av.open(opened, **options)
    except FileNotFoundError:
        raise ValueError(f"there is no {source}") from None
    except (av.FFmpegError, ValueError, OSError) as error:
        camera = options and not name
        what = f"the camera {source} cannot be opened" if camera else f"{source} is no video that can be read"
        raise ValueError(f"{what}: {_reason(error)}") from None
    with container:
        if not container.streams.video:
            raise ValueError(f"{source} has no picture in it, only sound or nothing")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > look.MAX_PIXELS:
            raise ValueError(f"{source} has {width} x {height} pixels a frame; at most {look.MAX_PIXELS:,} are allowed")
        stream.thread_type = "AUTO"
        try:
            yield from _decoded(container.decode(stream))
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(f"{source} is damaged or cut off: {_reason(error)}") from None


def _decoded(found: Iterable[Any]) -> Iterator[Frame]:
    """Times count from the first frame; one without a time comes with the frame before it."""
    first, last = None, 0.0
    for frame in found:
        at = frame.time
        if at is not None:
            first = at if first is None else first
            last = max(last, float(at - first))
        yield Frame(last, np.ascontiguousarray(frame.to_ndarray(format="rgb24")))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)[:120]


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError("videos and cameras are read by PyAV: pip install 'gangpao[video]'") from None
    return av
