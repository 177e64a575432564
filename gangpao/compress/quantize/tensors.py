"""A source of tensors under GGUF's names, some rows at a time: what quantizing needs to know of a model, whatever it lies in.

A source knows its tensors with the types they are stored in, the keys of the header that the new file gets, and what decides a
mixture. Values come in pieces that never cross from one expert to the next; memory is that of a piece.


What it gives up: weights in torch's .bin files come into memory as a whole.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao.compress.quantize.mixtures import ModelShape
from gangpao.formats import gguf_write
from gangpao.formats.blocks import BY_NAME

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
OnNote = Callable[[str], None]

PIECE = 1 << 20  # weights of a piece, about
_OWN_KEYS = ("general.alignment", "general.file_type", "general.quantization_version")
_OWN_PREFIXES = ("split.", "quantize.")


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor: GGUF name, shape in numpy's order, and the type it is stored in."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """All axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, kind: str | None = None) -> int:
        """Bytes of the data in a type, its own where none is given."""
        return BY_NAME[kind or self.type].row_bytes(self.cols) * self.rows

    def spans(self) -> Iterator[tuple[int, int]]:
        """Rows of the pieces: [begin, end)."""
        group = self.rows if len(self.shape) < 3 else self.shape[-2]
        step = max(1, PIECE // self.cols)
        for start in range(0, self.rows, group):
            for begin in range(start, start + group, step):
                yield begin, min(begin + step, start + group)


class Source(ABC):
    """An open source; a context manager."""

    path: Path
    tensors: tuple[SourceTensor, ...]
    architecture: str

    @abstractmethod
    def fields(self) -> dict[str, bytes]:
        """Keys of the header with their values as bytes, without those that the writer decides."""

    @abstractmethod
    def number(self, key: str) -> int:
        """An integer of the header behind the architecture's name; 0 where there is none."""

    @abstractmethod
    def values(self, tensor: SourceTensor, begin: int, end: int) -> Floats:
        """Rows [end - begin, C] as float32. Pieces are asked for in the order of the file, each once."""

    def raw(self, tensor: SourceTensor, begin: int, end: int) -> Bytes | None:
        """The same rows in the type they are stored in, where that is at hand."""
        return None

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.nbytes() for tensor in self.tensors)

    @property
    def shape(self) -> ModelShape:
        """What decides a mixture."""
        heads = self.number("attention.head_count")
        return ModelShape(
            self.architecture, self.number("block_count"), heads, self.number("attention.head_count_kv") or heads,
            self.number("expert_count"), {tensor.name: tensor.shape for tensor in self.tensors},
        )  # fmt: skip

    def quantized(self) -> Counter[str]:
        """How many tensors are stored in which block types: what has been rounded already."""
        return Counter(tensor.type for tensor in self.tensors if BY_NAME[tensor.type].block_size > 1)


def is_own(key: str) -> bool:
    """Whether the writer decides a key, whatever the source says: its types, its parts, its alignment."""
    return key in _OWN_KEYS or key.startswith(_OWN_PREFIXES)


def as_bytes(fields: Mapping[str, object]) -> dict[str, bytes]:
    """Keys with values as `gguf_write.metadata` takes them, each to its bytes."""
    return {key: gguf_write.metadata({key: value}) for key, value in fields.items()}
