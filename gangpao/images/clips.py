"""Videos in requests: the bytes of a short one -> a Picture whose `clip` is what a model is shown of it.

    read(data)      GIF and WebP animations, MP4 (MOV) and WebM (Matroska) -> the first frame at or after each second
    any_of(data)    a picture as it is (of an animation the first frame), a video file as `read` has it

Where that would be more than MOST frames, every second one goes and the time between them doubles, so they stay spread over the
whole. A frame is one piece (MiniCPM-V's rule for videos), of at most SIDE x SIDE pixels.

Animations are read by Pillow, here. Video files are decoded by PyAV (pip install 'gangpao[video]') in a process of their own, with
bounds on time and memory: what a decoder in C does with a damaged file ends there. AT_ONCE are decoded at a time; more are Busy.
What it gives up: sound, animated PNG, and videos that take longer than SECONDS to decode.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Literal

from gangpao.images import look
from gangpao.images.decode import LARGE, animation
from gangpao.images.look import Picture
from gangpao.images.video import Frame, Thinned, every_so_often, shrunk
from gangpao.optional import needed, there

MOST = 64  # frames of a video, MiniCPM-V 2.6's number
MAX_FRAMES, MAX_PIXELS = 3000, 1_000_000_000  # of an animation, all of which Pillow decodes: some ten seconds of a core
SIDE = 560  # of a frame, which is shown as one piece: MiniCPM-V's have 448 x 448 pixels in all
AT_ONCE = 2
SECONDS = 60.0  # to decode a video
_KINDS: tuple[tuple[Literal["mp4", "webm"], int, bytes], ...] = (("mp4", 4, b"ftyp"), ("webm", 0, b"\x1a\x45\xdf\xa3"))
_places = threading.BoundedSemaphore(AT_ONCE)


class Busy(Exception):
    """As many videos are being decoded as may be at a time."""


def read(data: bytes) -> Picture:
    """The video of a file. Raises ValueError saying what is wrong with it, and Busy."""
    if len(data) > look.MAX_BYTES:
        raise ValueError(f"the video is larger than the {look.MAX_BYTES:,} bytes that are allowed")
    if not _places.acquire(blocking=False):
        raise Busy
    try:
        kind = _kind(data)
        return _animation(data) if kind is None else _video(data, kind)
    finally:
        _places.release()


def _video(data: bytes, kind: Literal["mp4", "webm"]) -> Picture:
    frames = _pictures(_decoded_apart(data, kind))
    if not frames:
        raise ValueError("the video has no picture in it")
    return Picture(data, kind, frames[0].width, frames[0].height, len(frames), clip=frames)


def _animation(data: bytes) -> Picture:
    try:
        found = look.look(data, max_frames=MAX_FRAMES)
    except ValueError as error:
        raise ValueError(f"the video is no MP4, MOV, WebM or Matroska file, and no animation: {error}") from None
    if found.kind == "png":  # what a PNG has behind its first frame is not read
        return replace(found, clip=(replace(found, whole=True),))
    size = found.width * found.height
    if size > LARGE or found.frames * size > MAX_PIXELS:
        raise ValueError(
            f"the video has {found.frames} frames of {found.width} x {found.height} pixels; at most {LARGE:,} a frame and "
            f"{MAX_PIXELS:,} in all are decoded: send a shorter or smaller one"
        )
    return replace(found, clip=_pictures(map(png, chosen(Frame(*one) for one in animation(found)))))


def any_of(data: bytes) -> Picture:
    """A picture, or a video where the file is one of these. Raises ValueError saying what is wrong with it."""
    return read(data) if _kind(data) else look.look(data)


def _kind(data: bytes) -> Literal["mp4", "webm"] | None:
    found = next((name for name, at, mark in _KINDS if data[at : at + len(mark)] == mark), None)
    return None if look.other_format(data) else found  # HEIC and AVIF are boxes of MP4's family


def _pictures(files: Iterable[bytes]) -> tuple[Picture, ...]:
    """Each shown as one piece."""
    return tuple(replace(look.look(file), whole=True) for file in files)


def chosen(found: Iterable[Frame]) -> list[Frame]:
    """What a model is shown of a video's frames."""
    kept = Thinned(MOST)
    for frame in every_so_often(found, 1.0):
        kept.add(replace(frame, pixels=shrunk(frame.pixels, SIDE)))
    return kept.frames


def png(frame: Frame) -> bytes:
    """A frame as a file, without loss."""
    with needed("PIL", "a video"):
        from PIL import Image

    out = BytesIO()
    Image.fromarray(frame.pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _decoded_apart(data: bytes, kind: str) -> Iterator[bytes]:
    """Chosen frames as PNG files, from a process that reads the video."""
    if not there("av"):
        raise ValueError(
            "videos are read by PyAV: pip install 'gangpao[video]' where the model runs, or send frames as pictures"
        )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gangpao.images.clip_worker", kind], input=data, capture_output=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the video takes longer than {SECONDS:.0f} s to decode: send a shorter or smaller one"
        ) from None
    if done.returncode == 2:
        raise ValueError(done.stdout.decode("utf-8", "replace")[-200:])
    if done.returncode:
        raise ValueError("the video is damaged: its decoder did not end well")
    at = 0
    while at < len(done.stdout):
        size = int.from_bytes(done.stdout[at : at + 4], "little")
        yield done.stdout[at + 4 : at + 4 + size]
        at += 4 + size
