"""What went where and why, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from gangpao.compress.budget.measured import kind_of
from gangpao.compress.budget.solve import Budget, Row
from gangpao.units import show_bytes, table

_HEAD = ["tensor", "type", "bytes", "costs", "of all", "a step up", "more bytes", "would save", "a MB"]


def show(budget: Budget, *, every: bool = False) -> str:
    """A line for each type that a kind of tensor has, or with `every` for each tensor, the dearest first.

    costs, would save: KL divergence in nats a token; a MB: what the next million bytes there would save. That column is why: the
    bytes lie where a further one saves least.
    """
    total = sum(row.loss for row in budget.rows) or 1.0
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in budget.rows:
        groups.setdefault((row.tensor, "") if every else (kind_of(row.tensor), row.type), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: -sum(row.loss for row in item[1]))
    return table(_HEAD, [_cells(key[0], rows, total) for key, rows in ordered])


def _cells(name: str, rows: Sequence[Row], total: float) -> list[str]:
    loss, more = sum(row.loss for row in rows), sum(row.next_bytes for row in rows)
    saves = sum(row.next_saves for row in rows)
    label = name if len(rows) == 1 else f"{name} x {len(rows)}"
    steps = "/".join(sorted({row.next for row in rows if row.next})) or "none is better"
    cells = [
        label,
        rows[0].type,
        show_bytes(sum(row.nbytes for row in rows)),
        f"{loss:.2g}",
        f"{loss / total:.1%}",
        steps,
    ]
    return cells + ([show_bytes(more), f"{saves:.2g}", f"{saves / more * 1e6:.2g}"] if more else ["", "", ""])
