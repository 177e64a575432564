"""A source, types and an encoder to a .gguf file, which appears whole or not at all.

    with_types   which type each tensor gets: those that are named, the others keep theirs; rows that do not fit fall back
    write        piece by piece: read, encode, append

The encoder sees every row of a type with blocks once, in the order of the file: `plain` is ggml's rounding with an importance
matrix; better rounding (gangpao/compress/rounding) has the same form. A tensor that has the type already is copied, since no
rounding is better than none. Floats (F32, F16, BF16) are written here.

Memory is that of a piece of some million weights, however large the model is; a folder whose files keep q and k in the other order
of rows needs one such matrix, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.atomic import new_file
from gangpao.compress.quantize.mixtures import QUANTIZATION_VERSION, fitting
from gangpao.compress.quantize.source import open_source
from gangpao.compress.quantize.tensors import OnNote, Source, SourceTensor, as_bytes
from gangpao.formats import blocks, gguf_write
from gangpao.formats.blocks import BY_NAME, Unwritable
from gangpao.formats.imatrix import Importance
from gangpao.progress import Progress, Silent

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Encode = Callable[
    [str, int, Floats, str], Bytes
]  # tensor, first row in the file, rows [R, C], type -> [R, bytes of a row]


class _Target(NamedTuple):
    """A tensor of the new file."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """What became of a tensor: the type it had, that was wanted, and that it has; whether it was copied."""

    name: str
    weights: int
    was: str
    wanted: str
    type: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written. seconds: of reading, encoding and writing. source_bytes: of the source's tensors."""

    path: Path
    tensors: tuple[WrittenTensor, ...]
    seconds: float
    source_bytes: int

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size


def plain(importance: Importance | None, source: Source) -> Encode:
    """ggml's own rounding, weighted by the importance of the columns where there is one.

    Raises ValueError when a row is encoded whose importance has another number of columns: it is of another model.
    """
    tensors = {tensor.name: tensor for tensor in source.tensors}
    weights: dict[str, Floats | None] = {}

    def encode(name: str, first: int, values: Floats, kind: str) -> Bytes:
        if name not in weights:
            weights.clear()  # those of one tensor are enough
            weights[name] = _of(importance, tensors[name])
        found = weights[name]
        if found is not None and len(found) > 1:
            expert = first * len(found) // tensors[name].rows
            return _quantized(values, kind, found[expert])
        return _quantized(values, kind, None if found is None else found[0])

    return encode


def _of(importance: Importance | None, tensor: SourceTensor) -> Floats | None:
    """Importance [1, C] or [experts, C] of a tensor; None where nothing was collected."""
    found = importance.of(tensor.name) if importance is not None else None
    if found is None:
        return None
    experts = 1 if len(tensor.shape) < 3 else tensor.shape[0]
    if found.size != experts * tensor.cols:
        raise ValueError(
            f"{tensor.name} has {experts * tensor.cols} columns and the importance matrix {found.size}: it was made with another "
            "model; make one with this model (`gangpao imatrix`)"
        )
    return found.reshape(experts, tensor.cols)


def _quantized(values: Floats, kind: str, importance: Floats | None) -> Bytes:
    try:
        return kernels.quantize_rows(values, kind, importance)
    except ValueError:  # the definition says the same with the row as a number
        return blocks.quantize(values, kind, importance)


def write(
    source: Path,
    target: Path,
    types: Mapping[str, str],
    *,
    encode: Encode | None = None,
    fields: Mapping[str, object] | None = None,
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
) -> Written:
    """The model of a .gguf file or a Hugging Face folder as a .gguf file in which tensors have these types.

    types: by GGUF name; a tensor that is not named keeps the type it is stored in, and one whose rows are no whole blocks gets a
    type of smaller blocks. encode: None is `plain` without an importance matrix. fields: keys of the header, in place of the
    source's.

    Raises ValueError for a tensor that is not there, a type that we do not write, and values that have no place in a type.
    """
    with open_source(source, on_note) as opened:
        return write_source(opened, target, types, encode=encode, fields=fields, progress=progress)


def write_source(
    source: Source,
    target: Path,
    types: Mapping[str, str],
    *,
    encode: Encode | None = None,
    fields: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Written:
    """`write` of a source that is open already."""
    rows = with_types(source, types)
    encode, progress = encode or plain(None, source), progress or Silent()
    keys = source.fields() | as_bytes({"general.quantization_version": QUANTIZATION_VERSION, **(fields or {})})
    targets = [_Target(row.name, tensor.shape, row.type, row.nbytes) for row, tensor in rows]
    begun = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_file(target) as staging, staging.open("wb") as file:
        progress.start("quantizing", source.nbytes)
        file.write(gguf_write.header(targets, b"".join(keys.values()), len(keys)))
        done = 0
        for row, tensor in rows:
            for begin, end in tensor.spans():
                _piece(file, source, tensor, row.type, begin, end, encode)
                done += tensor.nbytes() // tensor.rows * (end - begin)
                progress.update(done)
            file.write(bytes(gguf_write.padding(file.tell())))
    return Written(target, tuple(row for row, _ in rows), time.monotonic() - begun, source.nbytes)


def with_types(source: Source, types: Mapping[str, str]) -> list[tuple[WrittenTensor, SourceTensor]]:
    """Every tensor in the order of the file with its type. Raises ValueError for names that the source does not have."""
    if unknown := sorted(types.keys() - {tensor.name for tensor in source.tensors}):
        raise ValueError(f"{source.path}: there is no tensor {unknown[0]:.80} in it, which a type was named for")
    if bad := sorted(set(types.values()) - BY_NAME.keys()):
        raise ValueError(f"{bad[0]!r:.40} is not a type we write; choose one of {', '.join(BY_NAME)}")
    out = []
    for tensor in source.tensors:
        wanted = types.get(tensor.name, tensor.type)
        kind = fitting(wanted, tensor.cols)
        row = WrittenTensor(tensor.name, tensor.weights, tensor.type, wanted, kind, tensor.nbytes(kind))
        out.append((row, tensor))
    return out


def _piece(
    file: IO[bytes], source: Source, tensor: SourceTensor, kind: str, begin: int, end: int, encode: Encode
) -> None:
    if kind == tensor.type and (raw := source.raw(tensor, begin, end)) is not None:
        file.write(raw.data)
        return
    values = source.values(tensor, begin, end)
    try:
        if BY_NAME[kind].block_size == 1:
            out = blocks.quantize(values, kind)
        else:
            out = encode(tensor.name, begin, values, kind)
    except Unwritable as error:
        raise ValueError(
            f"tensor {tensor.name}, to be written as {kind}: row {begin + error.row}: {error.what}"
        ) from error
    if out.shape != (end - begin, BY_NAME[kind].row_bytes(tensor.cols)):
        raise ValueError(f"{tensor.name}: an encoder gave {out.shape} bytes for {end - begin} rows of {kind}")
    file.write(np.ascontiguousarray(out).data)


def imatrix_fields(importance: Importance, file: str) -> dict[str, object]:
    """What a header says of the importance matrix a file was made with, under llama-quantize's keys and in its types."""
    out: dict[str, object] = {"quantize.imatrix.file": file}
    if importance.datasets:
        out["quantize.imatrix.dataset"] = importance.datasets[0]
    out["quantize.imatrix.entries_count"] = np.uint32(len(importance.sums))
    if importance.chunks:
        out["quantize.imatrix.chunks_count"] = np.uint32(importance.chunks)
    return out
