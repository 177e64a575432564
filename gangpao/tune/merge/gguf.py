"""A GGUF file as the base: tensors that an adapter changes are dequantized, changed and quantized again, all others are copied.

Metadata go over byte by byte (tokenizer, chat template, ends of a turn), but for general.name and what is no longer true. A type
of a search over superblocks or a codebook becomes Q8_0 unless a type is asked for: what an adapter adds is mostly smaller than
their steps. F16 stands in where rows are not whole blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao import kernels
from gangpao.formats import gguf_write
from gangpao.formats.adapters.gguf import Form, gguf_name, heads_of, hf_name, shapes_of
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.formats.blocks import BY_NAME, WRITTEN, fits
from gangpao.formats.gguf import GGUF, TensorInfo
from gangpao.formats.row_order import pairs_apart, pairs_side_by_side
from gangpao.tune.merge.adapted import Adapted

ROWS = 4096
_KEPT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")  # what a changed tensor stays in where no type is asked for
_START = 24  # where the metadata of a file begins
_OUTPUT, _INPUT = "output.weight", "token_embd.weight"
_Bytes = npt.NDArray[np.uint8]


class File:
    """An open base or result."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf, self.form = gguf, Form.of(gguf)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.form.tied

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Under Hugging Face's names."""
        return shapes_of(self.gguf)

    def tensor(self, name: str) -> Tensor:
        """A tensor under Hugging Face's name and in its order of rows, float32."""
        own = gguf_name(name)
        if own is None:
            raise ValueError(f"{self.gguf.path}: {name:.100} has no place in a GGUF file")
        values = self.gguf.array(own)
        if heads := heads_of(name.rpartition(".")[0], self.form):
            values = pairs_apart(values, heads)
        return torch.from_numpy(np.array(values))


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the result. source: the base's tensor; changed: Hugging Face's name of what it becomes, "" for a copy."""

    info: TensorInfo
    source: str
    changed: str = ""


def plan(base: File, adapted: Adapted, kind: str | None) -> list[Planned]:
    """The tensors of the result in the base's order, a head that was tied at the end. kind: the type of what is changed; None: as
    it was where that is one of _KEPT. Raises ValueError for a type that we do not write."""
    if kind is not None and kind not in WRITTEN:
        raise ValueError(f"type {kind!r:.40} is not one we write; choose one of {', '.join(WRITTEN)}")
    sources = [(info.name, info.name) for info in base.gguf.tensors.values()]
    if adapted.unties(base.tied):
        sources.append((_OUTPUT, _INPUT))
    out = []
    for name, source in sources:
        info, hf = base.gguf.info(source), hf_name(name)
        changed = hf if hf in adapted.names else None
        new = _type_for(info, kind) if changed else info.type
        rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        size = rows * BY_NAME[new].row_bytes(info.shape[-1])
        out.append(Planned(TensorInfo(name, info.shape, new, 0, size), source, changed or ""))
    return out


def _type_for(info: TensorInfo, kind: str | None) -> str:
    if len(info.shape) == 1:
        return "F32"
    if kind is not None:
        return kind if fits(info.shape[-1], kind) else "F16"
    if info.type in _KEPT:
        return info.type
    return "Q8_0" if fits(info.shape[-1], "Q8_0") else "F16"


def retyped(base: File, planned: list[Planned]) -> str:
    """Which types of changed tensors became others, in words with the bytes; "" where none did."""
    count: Counter[tuple[str, str]] = Counter()
    before = after = 0
    for one in planned:
        old = base.gguf.info(one.source)
        if one.changed and old.type != one.info.type:
            count[old.type, one.info.type] += 1
            before, after = before + old.nbytes, after + one.info.nbytes
    if not count:
        return ""
    listed = ", ".join(f"{n} tensors {old} -> {new}" for (old, new), n in count.most_common())
    return f"{listed}: {before:,} bytes became {after:,}"


def write(
    base: File, adapted: Adapted, planned: list[Planned], path: Path, name: str, advance: Callable[[], None]
) -> None:
    """Write the result. Raises ValueError naming a tensor whose values its type cannot hold."""
    raw, keys = _metadata(base.gguf, planned, name)
    alignment = base.gguf.get_int("general.alignment", gguf_write.ALIGNMENT)
    with path.open("wb") as file:
        file.write(gguf_write.header([one.info for one in planned], raw, keys, alignment))
        for one in planned:
            for piece in _data(base, adapted, one):
                file.write(np.ascontiguousarray(piece).data)
            file.write(bytes(gguf_write.padding(one.info.nbytes, alignment)))
            base.gguf.release(one.source)
            advance()


def _data(base: File, adapted: Adapted, one: Planned) -> Iterator[_Bytes]:
    if not one.changed:
        raw = base.gguf.raw(one.source)
        for begin in range(0, len(raw), ROWS):
            yield raw[begin : begin + ROWS]
        return
    source = EMBEDDING if one.changed == HEAD and base.tied else one.changed
    values = adapted.apply(one.changed, base.tensor(source)).numpy()
    if heads := heads_of(one.changed.rpartition(".")[0], base.form):
        values = np.ascontiguousarray(pairs_side_by_side(values, heads))
    values = values.reshape(-1, one.info.shape[-1])
    for begin in range(0, len(values), ROWS):
        try:
            yield kernels.quantize_rows(values[begin : begin + ROWS], one.info.type)
        except ValueError as error:
            raise ValueError(
                f"{one.changed}, to be written as {one.info.type}: {error}; choose another --type"
            ) from error


def _metadata(gguf: GGUF, planned: list[Planned], name: str) -> tuple[bytes, int]:
    """The base's keys and values as bytes, with what is no longer true replaced, and how many keys there are."""
    with gguf.path.open("rb") as file:
        file.seek(_START)
        raw = file.read(gguf.metadata_end - _START)
    keys = len(gguf.metadata)
    new: dict[str, object] = {"general.name": name}
    if file_type := _file_type(gguf, planned):
        new["general.file_type"] = file_type
    gone = {key: gguf.metadata[key] for key in [*new, *_SPLIT] if key in gguf.metadata}
    for key, value in gone.items():
        old = gguf_write.metadata({key: _SPLIT[key](value) if key in _SPLIT else value})
        if raw.count(old) != 1:
            raise ValueError(f"{gguf.path}: {key} is written in a way that we do not know; convert the file again")
        raw = raw.replace(old, b"")
    return raw + gguf_write.metadata(new), keys - len(gone) + len(new)


_SPLIT: dict[str, Callable[[int], np.generic]] = {
    "split.no": np.uint16, "split.count": np.uint16, "split.tensors.count": np.int32
}  # fmt: skip


def _file_type(gguf: GGUF, planned: list[Planned]) -> int | None:
    """general.file_type, where most bytes of matrices are of another type than they were."""
    count: Counter[str] = Counter()
    for one in planned:
        if len(one.info.shape) > 1:
            count[one.info.type] += one.info.nbytes
    most = count.most_common(1)[0][0] if count else ""
    changed = any(one.changed and gguf.info(one.source).type != one.info.type for one in planned)
    written = WRITTEN.get(most)
    return written.file_type if changed and written else None
