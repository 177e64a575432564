"""An importance matrix for a person: how unequal the columns of each layer are, and which stand out most.

Of the inputs of each product (those of all experts together): the share of its columns that hold half of all there is. One half
would be columns that are all alike; a few thousandths are outliers, for which a column's own scale, or an importance matrix, pays
most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gangpao.compress.importance.collect import READERS
from gangpao.formats.imatrix import Importance
from gangpao.units import table

Floats = npt.NDArray[np.float32]

_OUTLIERS = 8
# Columns of the table: the inputs that stand at the same place of a layer, of whichever kind it is.
_PLACES = {
    "q k v": ("qkv", "low", "delta"), "attention out": ("o", "delta_out"), "gate up": ("gate_up", "gate_up_exps"),
    "down": ("down", "down_exps"),
}  # fmt: skip


def show(importance: Importance) -> str:
    """Two tables: a row a layer, and the columns that are largest beside the mean of their tensor."""
    means = {name: found for name in importance.sums if (found := importance.of(name)) is not None}
    layers = sorted({int(name.split(".")[1]) for name in means if name.startswith("blk.")})
    rows = [[str(i), *(_cell(means, i, places) for places in _PLACES.values())] for i in layers]
    rows += [[name.removesuffix(".weight"), _percent(m)] + [""] * 3 for name, m in means.items() if "blk." not in name]
    first = f"{len(means)} tensors, {importance.chunks} chunks of {importance.chunk_size or '?'} tokens: " + ", ".join(
        importance.datasets
    )
    return "\n".join(
        [
            first.rstrip(": "),
            "share of the columns that hold half of the squared inputs (50 %: all alike)",
            table(["layer", *_PLACES], rows),
            "",
            "columns that stand out",
            table(["tensor", "column", "times the mean"], outliers(means)),
        ]
    )


def half_share(means: Floats) -> float:
    """Share of the columns, the largest first, whose mean squares make half of the sum."""
    ordered = np.sort(means.reshape(-1).astype(np.float64))[::-1]
    total = ordered.sum()
    if total <= 0:
        return 0.5
    return float(np.searchsorted(np.cumsum(ordered), total / 2) + 1) / len(ordered)


def outliers(means: Mapping[str, Floats]) -> list[list[str]]:
    """The largest columns beside the mean of their tensor, one a tensor; of tensors with one input the first."""
    found = []
    seen: set[bytes] = set()
    for name, values in means.items():
        if (key := values.tobytes()) in seen:
            continue
        seen.add(key)
        expert, at = divmod(int(np.argmax(values)), values.shape[-1])
        rows = values.reshape(-1, values.shape[-1])
        mean = float(rows[expert].mean())
        which = f"{name}, expert {expert}" if len(rows) > 1 else name
        found.append((float(rows[expert, at]) / mean if mean else 0.0, which, at))
    return [[name, str(at), f"{times:,.0f}"] for times, name, at in sorted(found, reverse=True)[:_OUTLIERS]]


def _cell(means: Mapping[str, Floats], layer: int, places: Sequence[str]) -> str:
    found = (means.get(f"blk.{layer}.{reader}.weight") for place in places for reader in READERS[place])
    return next((_percent(values) for values in found if values is not None), "-")


def _percent(values: Floats) -> str:
    return f"{100 * half_share(values):.3g} %"
