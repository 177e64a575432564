"""The forms of folders for servers, by the names that people type; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """bits of a weight; columns of a group, 0 for whole rows; whether activations are rounded by whoever runs it."""

    bits: int
    group: int
    activations: bool


GROUPS = (128, 64, 32)  # compressed-tensors refuses a short last group when it takes weights apart
FORMS = {"int4": Form(4, 128, False), "int8": Form(8, 0, True)}
