"""What the file of a model holds: its tensors, which of them have a type to choose, and its size to the byte.

Only matrices are chosen for; norms, biases and rotary factors stay as they are. The size counts the header, its padding and the
padding behind every tensor, so that a budget of bytes is one of the file that compress/quantize writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gangpao.compress.quantize.mixtures import QUANTIZATION_VERSION
from gangpao.compress.quantize.source import open_source
from gangpao.compress.quantize.tensors import as_bytes
from gangpao.formats import gguf_write
from gangpao.formats.blocks import BY_NAME, TYPES, fits
from gangpao.formats.gguf import TensorInfo

# For weights of three values alone; on others they lose nearly everything.
_TERNARY = ("TQ1_0", "TQ2_0")


@dataclass(frozen=True, slots=True)
class Layout:
    """tensors: name -> shape, in the file's order. fixed: name -> type, of those without a choice. stored: name -> type of the
    matrices in the source. header: bytes before the data, padded; the same for all types."""

    tensors: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, str]
    stored: Mapping[str, str]
    header: int

    @property
    def matrices(self) -> list[str]:
        """Those whose type is chosen."""
        return [name for name in self.tensors if name not in self.fixed]

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.tensors.values())

    def nbytes(self, name: str, kind: str) -> int:
        """Of the data of a tensor."""
        shape = self.tensors[name]
        return int(np.prod(shape[:-1], dtype=np.int64)) * BY_NAME[kind].row_bytes(shape[-1])

    def padded(self, name: str, kind: str) -> int:
        """The same with what stands behind it."""
        size = self.nbytes(name, kind)
        return size + gguf_write.padding(size)

    def base(self) -> int:
        """Bytes of the file without the matrices."""
        return self.header + sum(self.padded(name, kind) for name, kind in self.fixed.items())

    def file_bytes(self, types: Mapping[str, str]) -> int:
        """Of the whole file with these types of the matrices."""
        return self.base() + sum(self.padded(name, types[name]) for name in self.matrices)

    def bits(self, types: Mapping[str, str]) -> float:
        """Bits a weight, over all tensors; header and padding do not count."""
        whole = {**self.fixed, **{name: types[name] for name in self.matrices}}
        return 8 * sum(self.nbytes(name, kind) for name, kind in whole.items()) / self.weights

    def candidates(self, name: str, allowed: Sequence[str] | None = None) -> list[str]:
        """Types that a matrix may take, the smallest first: written by us, read by llama.cpp, of whole blocks; that of the source
        too, which is copied."""
        cols = self.tensors[name][-1]
        written = [t.name for t in TYPES if t.written and t.name not in ("F32", *_TERNARY) and fits(cols, t.name)]
        found = [kind for kind in written if allowed is None or kind in allowed]
        own = self.stored[name]
        if own not in found and own in BY_NAME and own not in _TERNARY:
            found.append(own)
        return sorted(found, key=lambda kind: (self.nbytes(name, kind), kind))


def layout_of(source: Path, fields: Mapping[str, object] | None = None) -> Layout:
    """The file that a folder or a .gguf file becomes. fields: keys of the header besides the source's, as they will be written.

    Raises ValueError for what has no form in GGUF.
    """
    with open_source(source) as opened:
        keys = opened.fields() | as_bytes({"general.quantization_version": QUANTIZATION_VERSION, **(fields or {})})
        infos = [TensorInfo(t.name, t.shape, t.type, 0, t.nbytes()) for t in opened.tensors]
    header = len(gguf_write.header(infos, b"".join(keys.values()), len(keys)))
    fixed = {info.name: info.type for info in infos if not _is_matrix(info.name, info.shape)}
    stored = {info.name: info.type for info in infos if info.name not in fixed}
    return Layout({info.name: info.shape for info in infos}, fixed, stored, header)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a type is chosen for it; the router of experts is small and stays."""
    return len(shape) > 1 and "ffn_gate_inp" not in name
