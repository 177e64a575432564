"""What is quantized: a .gguf file (or its parts), a Hugging Face folder. folder.py has the folders, which need the lab (torch)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gangpao.compress.quantize.tensors import Bytes, Floats, OnNote, Source, SourceTensor, is_own
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF
from gangpao.formats.gguf_fields import raw_fields


def again(source: Source) -> str:
    """A sentence for a source that was quantized before, naming what cannot come back; "" for floats."""
    found = source.quantized()
    if not found:
        return ""
    kinds = ", ".join(f"{count} tensors of {kind}" for kind, count in found.most_common())
    return (
        f"{source.path.name} is quantized already ({kinds}) and is quantized again: what its first rounding lost stays lost, and "
        "the second one adds to it. The float model (F16, BF16, a Hugging Face folder) gives a better file of the same size"
    )


def open_source(path: Path, on_note: OnNote = lambda _: None) -> Source:
    """A .gguf file or a Hugging Face folder. on_note gets what a folder's tokenizer cannot say in a file.

    Raises ValueError for what is neither, damaged, or has no GGUF form.
    """
    if path.is_dir():
        from gangpao.compress.quantize.folder import FolderSource  # needs torch

        return FolderSource(path, on_note)
    return FileSource(path)


class FileSource(Source):
    """A .gguf file; of a split model any part stands for all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf = GGUF.open(path)
        self.architecture = self.gguf.get_str("general.architecture", "")
        self.tensors = tuple(SourceTensor(t.name, t.shape, t.type) for t in self.gguf.tensors.values())
        self._fields = raw_fields(self.gguf)

    def fields(self) -> dict[str, bytes]:
        return {key: raw for key, raw in self._fields.items() if not is_own(key)}

    def number(self, key: str) -> int:
        value = self.gguf.metadata.get(f"{self.architecture}.{key}", 0)
        return int(value.flat[0]) if isinstance(value, np.ndarray) and value.size else int(value or 0)

    def values(self, tensor: SourceTensor, begin: int, end: int) -> Floats:
        found = dequantize(self.gguf.raw(tensor.name)[begin:end], tensor.type)
        self.gguf.release(tensor.name)
        return found

    def raw(self, tensor: SourceTensor, begin: int, end: int) -> Bytes:
        found = self.gguf.raw(tensor.name)[begin:end].copy()
        self.gguf.release(tensor.name)
        return found

    def close(self) -> None:
        self.gguf.close()
