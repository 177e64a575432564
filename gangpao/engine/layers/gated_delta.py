"""Gated DeltaNet of one layer: its weights, and the buffers of a step. What it computes stands in kernels/reference.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gangpao import kernels
from gangpao.formats.layer_sizes import Delta


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """into: queries, keys and values, gates, and two numbers for each value head, side by side; out: values -> hidden states."""

    into: kernels.Linear
    spec: kernels.DeltaSpec
    out: kernels.Linear

    def adaptable(self) -> dict[str, kernels.Linear]:
        """None of its linear layers has adapters."""
        return {}


class DeltaBuffers:
    """Work space for one chunk."""

    def __init__(self, tokens: int, delta: Delta, layers: Sequence[GatedDelta], *, floats: bool = False) -> None:
        self.x = kernels.Array(tokens, delta.width)
        self.values = kernels.Array(tokens, delta.value_size)
        self.heads = kernels.Activation(tokens, delta.value_size, [layer.out for layer in layers], floats)
