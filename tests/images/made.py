"""Image files made byte by byte, where a library would not write what a test needs."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
KINDS = ("PNG", "JPEG", "GIF", "WEBP")


def written(kind, pixels=COLOURS, **options):
    """A file as Pillow writes it."""
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG of rows of bytes (each with its filter byte), with chunks in front of the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def exif(orientation, order="<", entries=1):
    """An EXIF block that says how a picture is turned."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    field = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, entries) + field + bytes(4)
