"""Bytes, seconds, tables and the texts of others as people read them."""

import os
from datetime import UTC, datetime
from typing import TextIO


def colors(stream: TextIO) -> bool:
    """Whether to send escape codes to a stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def utc_now() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(text: str) -> str:
    """Text without control characters, except for tab and newline."""
    return text.translate(_CONTROL)


_CONTROL = dict.fromkeys([*range(32), *range(127, 160)]) | {9: "\t", 10: "\n"}


def show_bytes(count: float) -> str:
    """Decimal units as disks and downloads are sold: 98.4 MB, 1.12 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def show_seconds(seconds: float) -> str:
    """42 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def show_count(count: float) -> str:
    """A number of things, also of parts of one a second."""
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.2g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the last one is not padded."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
