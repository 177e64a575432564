"""Image files as pixels: equal to Pillow's where it is right, upright, over white; broken, lying and huge ones refused."""

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from gangpao.images import decode, look
from gangpao.machine import rss_mb
from tests.images.made import COLOURS, KINDS, chunk, exif, png, written


def pixels(data):
    return decode.decode(look.look(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_every_mode_is_what_pillow_reads(kind, mode):
    try:
        data = written(kind, Image.fromarray(COLOURS).convert(mode))
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    found = pixels(data)
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_pictures_stand_upright(kind, orientation, order):
    data = written(kind, exif=exif(orientation, order))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(pixels(data), expected)
    assert decode.size(look.look(data)) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize(
    "damaged", [exif(0), exif(9), exif(3)[:-9], exif(3, entries=60_000)[:12], b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"]
)  # fmt: skip
def test_a_damaged_exif_turns_nothing(damaged):
    np.testing.assert_array_equal(pixels(written("WEBP", lossless=True, exif=damaged)), COLOURS)


def test_an_exif_behind_the_pixels_of_a_png_counts():
    data = written("PNG")
    end = chunk(b"IEND", b"")
    turned = data.removesuffix(end) + chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + end
    assert pixels(turned).shape == (60, 40, 3)


def test_strips_are_the_whole(monkeypatch):
    data = written("PNG", np.dstack([COLOURS, COLOURS[..., :1]]))
    whole = pixels(data)
    monkeypatch.setattr(decode, "_STRIP", 130)
    np.testing.assert_array_equal(pixels(data), whole)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_over_white(kind):
    rgba = np.dstack([COLOURS, np.linspace(0, 255, 2400).astype(np.uint8).reshape(40, 60)])
    alpha = rgba[..., 3:].astype(float) / 255
    expected = np.floor(COLOURS * alpha + 255 * (1 - alpha) + 0.5)
    found = pixels(written(kind, rgba, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(found, expected)


BLUE, WHITE = [0, 0, 255], [255, 255, 255]


DEEP = b"\0" + struct.pack(">6H", 40000, 300, 5, 65535, 0, 257)


def key(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Palettes: indices 0 and 1 are transparent and half so; an index that the palette lacks is black.
        (
            png(3, 1, 8, 3, bytes([0, 0, 1, 2]), chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, *BLUE])) + chunk(b"tRNS", b"\0\x80")),
            [WHITE, [127, 255, 127], BLUE],
        ),
        (png(2, 1, 8, 3, bytes([0, 0, 9]), chunk(b"PLTE", bytes(BLUE))), [BLUE, [0, 0, 0]]),
        # 16 bits are their upper 8, also of grey, which Pillow clips.
        (png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 0, 40000, 65535)), [[0] * 3, [156] * 3, WHITE]),
        (png(2, 1, 16, 2, DEEP), [[156, 1, 0], [255, 0, 1]]),
        (png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 40000, 65535, 40000, 0)), [[156] * 3, WHITE]),
        # One transparent colour.
        (png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6]), key(1, 2, 3)), [WHITE, [4, 5, 6]]),
        (png(2, 1, 8, 0, bytes([0, 7, 8]), key(7)), [WHITE, [8] * 3]),
        (png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 0x1234, 0x1235), key(0x1234)), [WHITE, [18] * 3]),
        (png(2, 1, 16, 2, DEEP, key(40000, 300, 5)), [WHITE, [255, 0, 1]]),
    ],
)  # fmt: skip
def test_palettes_deep_colours_and_transparent_ones(data, expected):
    assert pixels(data)[0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind):
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (60, 40), (255, 0, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    animated = written(kind, first, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(pixels(animated), pixels(written(kind, first, **options)))


def test_a_gif_whose_later_frame_is_larger_has_the_size_of_its_first():
    one = written("GIF", COLOURS[:10, :10])
    larger = b"\x2c" + struct.pack("<HHHHB", 0, 0, 50, 50, 0) + b"\x02\x02\x44\x01\x00"
    data = one[:-1] + larger + b"\x3b"
    assert look.look(data).width == 50
    assert pixels(data).shape == (10, 10, 3)
    assert decode.size(look.look(data)) == (10, 10)


# --- broken, lying, huge


def pixels_or_words(data):
    """What a file decodes to, or what is said against it, which never holds an address of memory."""
    try:
        return pixels(data), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_file_is_refused_or_whole(kind):
    data = written(kind, COLOURS[:12, :16])
    whole = pixels(data)
    for end in range(len(data)):
        found, words = pixels_or_words(data[:end])
        assert not re.search("0x|BytesIO", words)
        if found is not None:
            np.testing.assert_array_equal(found, whole)  # what is missing are no pixels
            assert len(data) - end < 22


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_decoded_and_nothing_else(kind):
    random = np.random.default_rng(7)
    data = written(kind, COLOURS[:12, :16])
    for _ in range(300):
        bad = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 6)):
            bad[at] = random.integers(0, 256)
        found, words = pixels_or_words(bytes(bad))
        assert not re.search("0x|BytesIO", words)
        assert found is None or (found.dtype == np.uint8 and found.size <= look.MAX_PIXELS * 3)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="the PNG image is cut off: its 60 x 40 pixels cannot be decoded"):
        pixels(written("PNG")[:3000])
    with pytest.raises(ValueError, match="the WebP image is damaged"):
        pixels(written("WEBP")[:-40])
    body = bytearray(written("PNG"))
    body[4000] ^= 1  # the checksum of the pixels
    with pytest.raises(ValueError, match="PNG image is"):
        pixels(bytes(body))


def frame_header(width, height):
    return b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x22\0\x02\x11\1\x03\x11\1"


def test_a_second_size_is_a_lie():
    jpeg = written("JPEG")
    at = jpeg.index(b"\xff\xc0")
    with pytest.raises(ValueError, match="two sizes: 60 x 40 pixels by its first header, 20000 x 20000"):
        pixels(jpeg[: at + 19] + frame_header(20_000, 20_000) + jpeg[at + 19 :])
    head = struct.pack(">IIBBBBB", 16_000, 16_000, 8, 2, 0, 0, 0)
    with pytest.raises(ValueError, match=r"two sizes|damaged"):
        pixels(png(4, 4, 8, 2, bytes(13) * 4, chunk(b"IHDR", head)))


def test_texts_and_profiles_that_swell_are_not_read():
    bombs = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 300
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(60 << 20)))
    data = png(2, 1, 8, 0, bytes([0, 7, 8]), bombs + profile)
    before, began = rss_mb(), time.perf_counter()
    assert pixels(data)[0].tolist() == [[7] * 3, [8] * 3]
    assert rss_mb() < before + 32
    assert time.perf_counter() - began < 4


def test_a_jpeg_of_very_many_scans_is_refused():
    progressive = written("JPEG", progressive=True)
    assert pixels(progressive).shape == (40, 60, 3)
    last = progressive.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match="more than 100 scans"):
        pixels(progressive[:-2] + progressive[last:-2] * 200 + progressive[-2:])


def test_pixels_that_swell_past_the_declared_size_are_not_kept():
    data = png(4, 4, 8, 2, bytes(100 << 20))  # 4 x 4 are declared, 100 MB come
    before, began = rss_mb(), time.perf_counter()
    found, words = pixels_or_words(data)
    assert "PNG" in words if found is None else found.shape == (4, 4, 3)
    assert rss_mb() < before + 64
    assert time.perf_counter() - began < 4
