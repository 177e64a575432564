"""Image files as pixels: what `look.look` let through is decoded, turned upright and laid over white.

    decode(picture)     -> uint8 [height, width, 3], RGB
    size(picture)       -> (width, height) of the same, from the headers alone
    animation(picture)  -> (seconds since the first, pixels) of each frame

The first frame of animations; the orientation of EXIF; alpha, palettes and transparent colours over white; 16 bits as their
upper 8; CMYK by Pillow's plain rule. Colour profiles and gamma are not applied, as no vision model's own code does. Pillow
decodes, by the one decoder that the file's first bytes name. What Pillow would read and we do not need (texts, profiles, later
frames of a PNG) is taken out before, because compressed texts are bombs of their own.

A picture needs up to 8 bytes a pixel while it is decoded (WebP 16), beside its file, and 3 then; large ones are decoded one at a
time.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gangpao.images.look import Picture
from gangpao.optional import needed

if TYPE_CHECKING:
    from PIL import Image, ImageFile

Bytes = NDArray[np.uint8]
Key = int | bytes | tuple[int, ...] | None

MAX_SCANS = 100  # of a JPEG: every scan of a progressive one costs time for all pixels, and no bytes
LARGE = 4_000_000  # pixels from which on pictures are decoded one at a time
_STRIP = 1 << 20  # pixels that are converted at once

_PNG_NEEDS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_large = threading.Lock()


@functools.cache
def _openers() -> dict[str, type[ImageFile.ImageFile]]:
    with needed("PIL", "a picture"):
        from PIL import GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    return {
        "png": PngImagePlugin.PngImageFile,
        "jpeg": JpegImagePlugin.JpegImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
        "gif": GifImagePlugin.GifImageFile,
    }


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    from PIL.Image import DecompressionBombError

    return (
        OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error, OverflowError,
        DecompressionBombError, Warning,
    )  # fmt: skip


def decode(picture: Picture) -> Bytes:
    """The pixels of a picture, uint8 [height, width, 3], upright. Raises ValueError for a file that is damaged, cut off or lies."""
    alone = _large if picture.width * picture.height >= LARGE else contextlib.nullcontext()
    with alone, _opened(picture) as image:
        with _said(picture):
            image.load()
        _check(picture, image)
        pixels = _over_white(image, _transparent(image, picture))
        turned = _orientation(image)
    return _upright(pixels, turned)


def size(picture: Picture) -> tuple[int, int]:
    """(width, height) of what `decode` gives, without decoding. Raises ValueError for a damaged header."""
    with _opened(picture) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def animation(picture: Picture) -> Iterator[tuple[float, Bytes]]:
    """Seconds since the first frame and pixels, uint8 [height, width, 3], of every frame; a still picture is one frame at 0.

    Frames follow one another by their own durations, 0.1 s where a file says less than 0.02, as browsers have it. Raises
    ValueError when a damaged frame is reached.
    """
    began = 0.0
    with _opened(picture, every_frame=True) as image:
        for index in range(getattr(image, "n_frames", 1)):
            with _said(picture):
                image.seek(index)
                image.load()
            _check(picture, image)
            yield began, _upright(_over_white(image, _transparent(image, picture)), _orientation(image))
            duration = float(image.info.get("duration") or 0)
            began += duration / 1000 if duration >= 20 else 0.1


@contextlib.contextmanager
def _opened(picture: Picture, *, every_frame: bool = False) -> Iterator[ImageFile.ImageFile]:
    data = picture.data
    if picture.kind == "png" and not every_frame:
        data = _needed(data)
    elif picture.kind == "jpeg" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"the JPEG image has more than {MAX_SCANS} scans")
    opened = _openers()[picture.kind]
    with _said(picture):
        image = opened(BytesIO(data))
    with image:
        _check(picture, image)
        yield image


@contextlib.contextmanager
def _said(picture: Picture) -> Iterator[None]:
    """Errors of the decoder in our words: its own hold addresses of memory."""
    try:
        yield
    except _errors() as error:
        text = str(error).lower()
        what = (
            "cut off" if any(word in text for word in ("truncated", "broken data stream", "not enough")) else "damaged"
        )
        raise ValueError(f"the {_NAMES[picture.kind]} image is {what}: its {picture.width} x {picture.height} pixels "
                         "cannot be decoded") from None  # fmt: skip


_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "gif": "GIF"}


def _check(picture: Picture, image: Image.Image) -> None:
    """A GIF's later frames may be larger than its first; everything else has the size that was looked at."""
    width, height = image.size
    if picture.kind == "gif":
        lies = width > picture.width or height > picture.height
    else:
        lies = (width, height) != (picture.width, picture.height)
    if lies:
        raise ValueError(
            f"the {_NAMES[picture.kind]} image has two sizes: {picture.width} x {picture.height} pixels by its first header, "
            f"{width} x {height} by a later one"
        )


def _needed(data: bytes) -> bytes:
    """A PNG without the chunks that are not pixels of its first frame."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in _PNG_NEEDS:
            kept.append(data[at : at + 12 + length])
        if kind == b"IEND":
            break
        at += 12 + length
    return b"".join(kept)


def _transparent(image: Image.Image, picture: Picture) -> Key:
    """The colour or index that is transparent, as the decoded pixels have it; None: there is none."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and picture.kind == "png" and picture.data[24] == 16:
        return tuple(value >> 8 for value in key)  # of 16 bits, where Pillow keeps the upper 8
    return key


def _over_white(image: Image.Image, key: Key) -> Bytes:
    """uint8 [height, width, 3]; strip by strip, so that no second whole copy is there."""
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        out[top:bottom] = _rgb(image.crop((0, top, width, bottom)), key)
    return out


def _rgb(strip: Image.Image, key: Key) -> Bytes:
    if strip.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scale
        grey = np.asarray(strip)
        pixels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
        if isinstance(key, int):
            pixels[grey == key] = 255
        return pixels
    if not (strip.mode in ("LA", "PA", "RGBA", "La", "RGBa") or key is not None):
        return np.asarray(strip.convert("RGB"))
    if key is not None:
        strip.info["transparency"] = key
    rgba = np.asarray(strip.convert("RGBA")).astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """1 to 8 by EXIF, tag 0x0112 of the first directory; 1 where there is none or it is damaged, as browsers take it."""
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # a directory that ends early has no orientation
    return 1


def _upright(pixels: Bytes, orientation: int) -> Bytes:
    """Orientations 2 to 4 are flips of columns, both, rows; 5 to 8 the same of the transposed picture."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    columns = orientation in (2, 3, 6, 7)
    rows = orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])
