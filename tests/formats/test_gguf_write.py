"""The header that we write, read by the gguf package and by our own reader."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from gangpao.formats import gguf_write
from gangpao.formats.blocks import WRITTEN, quantize
from gangpao.formats.gguf import GGUF, TensorInfo

FIELDS: dict[str, object] = {
    "general.architecture": "llama", "a.u32": 7, "a.f32": 0.5, "a.bool": True, "a.strings": ["\u00e4", ""], "a.ints": [1, -2],
    "a.floats": [0.25, 1.0], "a.u16": np.uint16(9), "a.i64": np.int64(-(2**40)), "a.u8s": np.array([1, 2], np.uint8),
    "a.bools": np.array([True, False]), "a.f64": np.float64(0.1),
}  # fmt: skip


def write(path: Path, fields: dict[str, object], data: dict[str, tuple[tuple[int, ...], str]]) -> Path:
    tensors, parts = [], []
    for name, (shape, kind) in data.items():
        raw = quantize(np.ones(shape, np.float32).reshape(-1, shape[-1]), kind).tobytes()
        tensors.append(TensorInfo(name, shape, kind, 0, len(raw)))
        parts.append(raw + bytes(gguf_write.padding(len(raw))))
    header = gguf_write.header(tensors, gguf_write.metadata(fields), len(fields))
    path.write_bytes(header + b"".join(parts))
    return path


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def test_the_gguf_package_and_we_read_what_was_written(tmp_path: Path) -> None:
    data = {kind.lower(): ((3, 256), kind) for kind in WRITTEN} | {"cube": ((2, 3, 32), "Q8_0"), "row": ((5,), "F32")}
    path = write(tmp_path / "x.gguf", FIELDS, data)
    peer = gguf.GGUFReader(path)
    assert {key: peer.fields[key].contents() for key in FIELDS} == {k: plain(v) for k, v in FIELDS.items()}
    types = {
        "a.u16": "UINT16",
        "a.i64": "INT64",
        "a.f64": "FLOAT64",
        "a.u32": "UINT32",
        "a.f32": "FLOAT32",
        "a.bool": "BOOL",
    }
    assert {key: peer.fields[key].types[0].name for key in types} == types
    assert {t.name: (tuple(t.shape.tolist())[::-1], t.tensor_type.name) for t in peer.tensors} == data
    with GGUF.open(path) as ours:
        assert {key: plain(ours.metadata[key]) for key in FIELDS} == {k: plain(v) for k, v in FIELDS.items()}
        assert {t.name: (t.shape, t.type) for t in ours.tensors.values()} == data
        assert all(np.allclose(ours.array(name), 1, atol=2e-3) for name in data)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**40, "32 bits"), (-1, "32 bits"), (None, "NoneType"), ({}, "dict"), (np.complex64(1), "complex64"),
        (np.ones((2, 2)), "ndarray"),
    ],
)  # fmt: skip
def test_a_value_without_a_place_is_refused_by_its_key(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^a\.key: .*{reason}"):
        gguf_write.metadata({"a.key": value})


def test_quants_types_numbers_are_those_of_the_package() -> None:
    for name, written in WRITTEN.items():
        peer = "ALL_F32" if name == "F32" else f"MOSTLY_{name}"
        peer += "_S" if name in ("Q3_K", "Q4_K", "Q5_K") else ""  # the mixture with the fewest other types
        assert written.file_type == gguf.LlamaFileType[peer]
