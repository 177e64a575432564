"""What became of a model that was quantized, as a table for a person and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gangpao.compress.quantize.write import Written, WrittenTensor
from gangpao.formats.blocks import BY_NAME
from gangpao.units import show_bytes, show_seconds
from gangpao.units import table as columns


def fallbacks(written: Written) -> list[tuple[str, str, int]]:
    """(wanted type, type, tensors) of rows that are no whole blocks of what was wanted."""
    found = Counter((row.wanted, row.type) for row in written.tensors if row.wanted != row.type)
    return [(wanted, kind, count) for (wanted, kind), count in found.items()]


def table(written: Written) -> str:
    """Tensors by type, then the file, then what fell back, one line each."""
    kinds: dict[str, list[WrittenTensor]] = {}
    for row in sorted(written.tensors, key=lambda row: -row.nbytes):
        kinds.setdefault(row.type, []).append(row)
    rows = [[kind, str(len(of)), *_size(of)] for kind, of in kinds.items()]
    rows.append(["all", str(len(written.tensors)), *_size(written.tensors)])
    speed = written.source_bytes / max(written.seconds, 1e-9)
    lines = [
        columns(["type", "tensors", "weights", "bytes", "bits a weight"], rows),
        f"{written.path}: {show_bytes(written.nbytes)} from {show_bytes(written.source_bytes)} of weights in "
        f"{show_seconds(written.seconds)} ({show_bytes(speed)}/s)",
    ]
    for wanted, kind, count in fallbacks(written):
        block = BY_NAME[wanted].block_size
        lines.append(f"{count} tensors are {kind}, not {wanted}: their rows are no whole blocks of {block} weights")
    return "\n".join(lines)


def facts(written: Written) -> dict[str, Any]:
    """The same for programs: bytes, bits a weight, seconds, tensors by type, what fell back."""
    weights, nbytes = sum(row.weights for row in written.tensors), sum(row.nbytes for row in written.tensors)
    kinds = Counter(row.type for row in written.tensors)
    return {
        "file": str(written.path), "file_bytes": written.nbytes, "tensor_bytes": nbytes, "source_bytes": written.source_bytes,
        "weights": weights, "bits_per_weight": round(8 * nbytes / weights, 4) if weights else 0.0,
        "seconds": round(written.seconds, 3), "bytes_per_second": round(written.source_bytes / max(written.seconds, 1e-9)),
        "types": dict(kinds.most_common()),
        "fell_back": [{"wanted": wanted, "type": kind, "tensors": count} for wanted, kind, count in fallbacks(written)],
    }  # fmt: skip


def _size(rows: list[WrittenTensor] | tuple[WrittenTensor, ...]) -> list[str]:
    weights, nbytes = sum(row.weights for row in rows), sum(row.nbytes for row in rows)
    return [f"{weights:,}", show_bytes(nbytes), f"{8 * nbytes / weights:.3g}" if weights else "-"]
