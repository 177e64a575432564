"""Which tensor gets which type in a model that is trained for a file: llama-quantize's mixture, and patterns over it."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from gangpao.compress.quantize.mixtures import ModelShape, fitting, is_quantized, mixture
from gangpao.formats.blocks import BY_NAME


def types_of(shape: ModelShape, to: str, patterns: Mapping[str, str], *, importance: bool = False) -> dict[str, str]:
    """The type of every matrix, by its GGUF name. to: a type or a named mixture.

    Raises ValueError for a type that is not known, and for a pattern that no matrix has.
    """
    out = mixture(to, shape, importance)
    matrices = [name for name in shape.shapes if is_quantized(name, shape.shapes[name])]
    for pattern, wanted in patterns.items():
        found = [name for name in matrices if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"types: no matrix has a name like {pattern!r:.80}; names are as {', '.join(matrices[:3])}"
            )
        if wanted not in BY_NAME:
            raise ValueError(f"types: {wanted!r:.40} is not a type of GGUF files; choose one of {', '.join(BY_NAME)}")
        out |= {name: fitting(wanted, shape.shapes[name][-1]) for name in found}
    return out
