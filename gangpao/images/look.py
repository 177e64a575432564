"""Images in requests: what they are and how large, read from their headers before anything is decoded.

    from_data_url(url), from_base64(text)   -> bytes, looked at -> Picture
    look(data)          PNG, JPEG, WebP or GIF by its own first bytes -> Picture, within the caps

The caps stand before any decoder: a file of a few kilobytes may declare 30,000 x 30,000 pixels or 10,000 frames. What it gives
up: other formats, and everything a decoder would notice, such as a damaged body.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass
from typing import Any, Literal

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384
MAX_FRAMES = 64

# What a data: URL says of its kind is not used: the file's first bytes tell.
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]{0,80}(;[a-z0-9_.-]{1,40}=[^;,]{0,200}){0,4};base64,", re.IGNORECASE)
_LINES = str.maketrans("", "", " \t\r\n")  # as `base64` and mail write it
# Other formats: name, and what stands at which place of the file. Phones write HEIC, scanners TIFF and PDF.
_OTHERS = (
    ("HEIC", 4, b"ftyphei"), ("HEIC", 4, b"ftyphev"), ("HEIC", 4, b"ftypmif1"), ("HEIC", 4, b"ftypmsf1"), ("AVIF", 4, b"ftypavi"),
    ("TIFF", 0, b"II*\0"), ("TIFF", 0, b"MM\0*"), ("BMP", 0, b"BM"), ("PDF", 0, b"%PDF-"), ("SVG", 0, b"<svg"),
    ("JPEG XL", 0, b"\xff\x0a"), ("JPEG XL", 4, b"JXL \r\n"), ("JPEG 2000", 4, b"jP  \r\n"),
)  # fmt: skip
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file that was looked at: its bytes, its size in pixels and its frames. whole: shown as one piece, where its model
    would cut it into slices (OpenAI's detail "low"). clip: what is shown of a video in place of one picture (clips.py)."""

    data: bytes
    kind: Literal["png", "jpeg", "webp", "gif", "mp4", "webm"]
    width: int
    height: int
    frames: int = 1
    whole: bool = False
    clip: tuple[Picture, ...] = ()


def from_data_url(url: str) -> Picture:
    """The picture of a data: URL. Raises ValueError saying what is wrong."""
    return look(in_data_url(url))


def in_data_url(url: str) -> bytes:
    """What a data: URL holds, not looked at. Raises ValueError saying what is wrong."""
    match = _DATA_URL.match(url[:1000])
    if match is None:
        raise ValueError("an image must be a data: URL (data:image/png;base64,...)")
    return _decoded(url, match.end())


def from_base64(encoded: str) -> Picture:
    """The picture of bytes in base64. Raises ValueError saying what is wrong."""
    return look(_decoded(encoded, 0))


def _decoded(text: str, start: int) -> bytes:
    """The bytes of base64 from a place in a text on."""
    if (len(text) - start) * 3 // 4 > MAX_BYTES + MAX_BYTES // 20:
        raise ValueError(f"the image is larger than the {MAX_BYTES:,} bytes that are allowed")
    try:
        data = base64.b64decode(text[start:].translate(_LINES).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("the image's data is not base64") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"the image is larger than the {MAX_BYTES:,} bytes that are allowed")
    return data


def look(data: bytes, *, max_frames: int = MAX_FRAMES) -> Picture:
    """What a file is, from its header. Raises ValueError for anything that is not an allowed image within the caps.

    max_frames: more may be allowed where all frames of an own file are wanted.
    """
    try:
        found = _look(data, max_frames)
    except (struct.error, IndexError):
        found = None
    if found is None:
        raise ValueError(_what_else(data))
    if not (1 <= found.width <= MAX_SIDE and 1 <= found.height <= MAX_SIDE) or found.width * found.height > MAX_PIXELS:
        raise ValueError(
            f"the image has {found.width} x {found.height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS:,} in all "
            "are allowed"
        )
    if found.frames > max_frames:
        raise ValueError(f"the image has more than {max_frames} frames: give one of them as a picture of its own")
    return found


def other_format(data: bytes) -> str | None:
    """The name of another format of pictures, for people know which they have; None for what is none of these."""
    return next((name for name, at, mark in _OTHERS if data[at : at + len(mark)] == mark), None)


def as_part(picture: Picture) -> dict[str, Any]:
    """A part of a message with a data: URL: OpenAI's image_url, or vLLM's video_url."""
    kind, data = "video" if picture.clip else "image", base64.b64encode(picture.data).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/{picture.kind};base64,{data}"}}


def _what_else(data: bytes) -> str:
    """What to say of a file that is none of the four."""
    kind = other_format(data)
    if kind is None:
        return "the image is not a PNG, JPEG, WebP or GIF file, or its header is damaged"
    return f"the image is not a PNG, JPEG, WebP or GIF file: it is {kind}, which has to be converted first"


def _look(data: bytes, max_frames: int) -> Picture | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data, max_frames)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(data, max_frames)
    return None


def _png(data: bytes) -> Picture | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    at, frames = 33, 1
    # An animation is announced before the first image data.
    while data[at + 4 : at + 8] not in (b"IDAT", b"IEND", b""):
        if data[at + 4 : at + 8] == b"acTL":
            (frames,) = struct.unpack_from(">I", data, at + 8)
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return Picture(data, "png", width, height, frames)


def _jpeg(data: bytes) -> Picture | None:
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return Picture(data, "jpeg", width, height)
        if marker in (0xD9, 0xDA):
            return None  # the image begins, or ends, without its size
        if not (marker == 0x01 or 0xD0 <= marker <= 0xD7):
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _webp(data: bytes, max_frames: int) -> Picture | None:
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Picture(data, "webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Picture(data, "webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        return None
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    frames, at = 0, 30
    while at + 8 <= len(data) and frames <= max_frames:
        frames += data[at : at + 4] == b"ANMF"
        size = struct.unpack_from("<I", data, at + 4)[0]
        at += 8 + size + size % 2
    return Picture(data, "webp", width, height, max(1, frames))


def _gif(data: bytes, max_frames: int) -> Picture | None:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, frames = 13 + _table(flags), 0
    while frames <= max_frames:
        block = data[at]
        if block == 0x3B:
            break
        if block == 0x2C:
            frames += 1
            left, top, w, h, flags = struct.unpack_from("<HHHHB", data, at + 1)
            width, height = max(width, left + w), max(height, top + h)
            at += 11 + _table(flags)  # its descriptor, its colours, the size of its codes
        elif block == 0x21:
            at += 2
        else:
            return None
        while size := data[at]:
            at += 1 + size
        at += 1
    return Picture(data, "gif", width, height, frames) if frames else None


def _table(flags: int) -> int:
    """Bytes of a colour table by its flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
