"""Amounts of bytes as people write them: 900MB, 1.2GiB, 943718400."""

from __future__ import annotations

import math
import re

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30,
    "K": 10**3, "M": 10**6, "G": 10**9,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes, rounded down. MB is a million bytes and MiB is 1,048,576. Raises ValueError for what is no amount."""
    found = re.fullmatch(r"\s*([0-9][0-9_,]*\.?[0-9]*)\s*([A-Za-z]*)\s*", text)
    unit = found.group(2).upper() if found else None
    if found is None or unit not in _UNITS:
        raise ValueError(f"{text!r:.40} is no amount of bytes; write 900MB, 1.2GiB or a number of bytes")
    number = float(found.group(1).replace(",", "").replace("_", ""))
    # 1.2 * 10**9 must not lose its last byte to binary fractions.
    amount = math.floor(number * _UNITS[unit] + 1e-6)
    if amount < 1:
        raise ValueError(f"{text!r:.40} is less than a byte; write 900MB, 1.2GiB or a number of bytes")
    return amount
